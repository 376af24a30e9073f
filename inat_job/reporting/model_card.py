"""README.md of an exported model: a model card with the Hugging Face hub's metadata, made of report.json.

https://huggingface.co/docs/hub/model-cards
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from inat_job import event_text, options, timm_networks
from inat_job.configuration import options_by_key
from inat_job.recipes import RECIPES
from inat_job.reporting.reproduction import changed_settings, model_kind, option_words

CARD = "README.md"
_NETWORK = {"a": "a five-block convolutional network", "b": "a network of torchvision"}
"""By part, but for timm's."""


def render_card(report: Mapping[str, Any], timm: bool) -> str:
    """The card of a finished run; `timm` says whether timm loads the model's folder."""
    test, model, data = report["test"], report["model"], report["data"]
    network = "a network of timm" if timm_networks.is_timm(model["name"]) else _NETWORK[report["part"]]
    low, high = test["ci95"]
    in_both = data.get("in_both_train_and_test", 0)
    parts = [
        _metadata(report, timm),
        f"# {_plain(model['name'])}: {len(data['classes'])} classes\n",
        f"An image classifier, {network} ({_plain(model_kind(report))}): "
        f"{model['parameters']:,} parameters, "
        f"{model['macs'] / 1e6:,.0f} million multiply-adds an image.\n",
        "## Results\n",
        f"**Test accuracy {test['accuracy']:.4f}**, 95 % interval {low:.4f} to {high:.4f}: {test['correct']} of "
        f"{test['n']} test images. Test loss {test['loss']:.4f}.\n",
        _class_table(test),
        "## Data\n",
        f"`{_plain(_name(data['uri']))}`, sha256 `{data['digest']}`: {data['n_train']} images for training, "
        f"{data['n_val'] or 'none'} for validation, {data['n_test']} for testing.\n",
        "## Training\n",
        _settings(report),
        "## How to load it\n",
        _loading(timm),
        _exports(report),
        "## Limits\n",
        f"It knows its {len(data['classes'])} classes and no others: an image of anything else gets one of them, maybe "
        "with a high probability. The accuracy holds for images like those of the test set.",
    ]
    if in_both:
        parts.append(f"{in_both} test images are also training or validation images, so the accuracy is too high.")
    return "\n".join(filter(None, parts)) + "\n"


def _metadata(report: Mapping[str, Any], timm: bool) -> str:
    """The YAML block; each value is written as JSON, which is YAML too."""
    name = _name(report["data"]["uri"])
    metric = {"type": "accuracy", "value": report["test"]["accuracy"], "name": "Test accuracy"}
    dataset = {"name": name, "type": name, "split": "test"}
    result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": [metric]}
    fields = {
        "library_name": "timm" if timm else "inat-job",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", *(["timm"] if timm else [])],
        "datasets": [name],
        "metrics": ["accuracy"],
        "model-index": [{"name": report["run_id"], "results": [result]}],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---", ""])


def _name(uri: str) -> str:
    """The data set's name without its place: of s3://bucket/nature_12K.zip, nature_12K."""
    last = PurePosixPath(options.public_uri(uri).rstrip("/:")).name
    return re.sub(r"\.(zip|tgz|txz|tbz2?|tar(\.(gz|xz|bz2))?)$", "", last) or "data"


def _class_table(test: Mapping[str, Any]) -> str:
    rows = [
        f"| {_plain(name)} | {each['n']} | {each['precision']:.3f} | {each['recall']:.3f} | {each['f1']:.3f} |"
        for name, each in test["per_class"].items()
    ]
    return "\n".join(["| class | n | precision | recall | F1 |", "|---|---|---|---|---|", *rows, ""])


def _settings(report: Mapping[str, Any]) -> str:
    """The settings that decide the result and differ from the recipe's defaults."""
    known, changed = options_by_key(RECIPES[report["part"]]()), []
    for row in changed_settings(report):
        each, value = known[row["setting"]][0], row["value"]
        private = each.uri and not re.fullmatch(each.names, str(value))
        if each.in_fingerprint and not private and value is not None:
            changed += option_words(each, value)
    text = f"`{_plain(shlex.join(changed))}`, and otherwise the defaults" if changed else "the defaults"
    step = report["checkpoint"]
    return f"Settings: {text}. The weights are of epoch {step['epoch']}, step {step['step']}.\n"


def _loading(timm: bool) -> str:
    lines = ["```python", "from inat_job import load_model", "", 'model = load_model("FOLDER")  # with this file']
    lines += ['print(model.predict("a.jpg").label)', "```", ""]
    if not timm:
        return "\n".join([*lines, "timm does not load it: it has no such network, or another one of that name.\n"])
    ours = ["```python", "import timm", "", 'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()']
    return "\n".join([*lines, *ours, "```", ""])


def _exports(report: Mapping[str, Any]) -> str:
    rows = [
        f"`{each['file']}` takes float32 (batch, 3, S, S), RGB in 0..255, and normalises it itself; its logits differ "
        f"from the network's by at most {each['max_abs_diff']:.1e}, and its test accuracy is {each['accuracy']:.4f}.\n"
        for each in report.get("exports", {}).values()
        if "file" in each
    ]
    return "\n".join(rows)


def _plain(text: str) -> str:
    """Anyone's text, as text in Markdown: no markup, no line of its own."""
    return re.sub(r"([|`<>*\[\]\\#&])", lambda mark: f"&#{ord(mark[0])};", event_text.printable(text))
