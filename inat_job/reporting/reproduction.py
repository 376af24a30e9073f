"""How to run again what a report is of: the settings that are not the defaults, and the command that sets them."""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from inat_job.configuration import crop_of_weights, options_by_key
from inat_job.errors import JobError
from inat_job.models.model_files import WEIGHTS
from inat_job.options import Option, as_text, as_toml
from inat_job.recipes import RECIPES

_NOT_REPEATED = ("run.resume", "run.force", "run.preset")
"""Settings that decide about the run that was there, and would delete this one; and the preset, for which its values
stand."""


def is_test(report: Mapping[str, Any]) -> bool:
    """Whether this is the report of a test; in those of earlier versions the checkpoint's run tells."""
    if "command" in report:
        return bool(report["command"] == "test")
    return f"/{report['run_id']}/checkpoints/" not in report["checkpoint"]["uri"]


def changed_settings(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings that are not the defaults of the part, with both values."""
    own, defaults = _plain(report["settings"]), _plain(RECIPES[report["part"]]().as_dict())
    with suppress(JobError, KeyError):  # not known without timm, or in reports of another version
        defaults["data"]["eval_crop"] = crop_of_weights(own.get("model", {})) or defaults["data"]["eval_crop"]
    if own.get("train", {}).get("epochs") != defaults["train"]["epochs"]:
        defaults["train"]["min_images_seen"] = 0  # where --epochs is given
    return [
        {"setting": f"{section}.{field}", "value": value, "default": defaults.get(section, {}).get(field)}
        for section, every in own.items()
        for field, value in every.items()
        if field in defaults.get(section, {}) and value != defaults[section][field]
    ]


def command_line(report: Mapping[str, Any], prefix: Sequence[str]) -> str:
    """The command of a run, for a shell. `prefix` is the words that start this program."""
    if is_test(report):
        known = options_by_key(RECIPES[report["part"]]())
        return shlex.join([*prefix, "test", *_test_words(report, known)])
    return train_command(report, prefix)


def train_command(report: Mapping[str, Any], prefix: Sequence[str], leave_out: Collection[str] = ()) -> str:
    """The command that trains with a report's settings, all but those to `leave_out`, for a shell."""
    known = options_by_key(RECIPES[report["part"]]())
    words = [*prefix, f"part{report['part']}"]
    for row in changed_settings(report):
        if row["setting"] not in (*_NOT_REPEATED, *leave_out):
            words += option_words(known[row["setting"]][0], row["value"])
    return shlex.join(words)


def config_file(report: Mapping[str, Any], leave_out: Collection[str] = ()) -> list[str]:
    """The settings that are not the defaults, as lines of TOML for `--config`, all but those to `leave_out`."""
    sections: dict[str, list[str]] = {}
    for row in changed_settings(report):
        section, _, field = row["setting"].partition(".")
        if row["setting"] not in (*_NOT_REPEATED, *leave_out) and row["value"] is not None:
            sections.setdefault(section, []).append(f"{field} = {as_toml(row['value'])}")
    return [line for name, lines in sections.items() for line in (f"[{name}]", *lines)]


def model_kind(report: Mapping[str, Any]) -> str:
    """The model in words: trained from scratch, or fine-tuned and how much of it."""
    model, settings = report["model"], report["settings"].get("model", {})
    if model.get("trainable_parameters", 0) is None:  # a test of a model without its run
        return str(model["name"])
    if report["part"] == "a":
        return f"{model['name']}, trained from scratch"
    ways = {"head": "frozen but for its head", "full": "fine-tuned as a whole", "gradual": "unfrozen stage by stage"}
    ways["lp-ft"] = "fine-tuned as a whole after its head"
    ways["last-k"] = f"fine-tuned in its last {settings.get('last_k')} stages"
    way = ways.get(settings.get("strategy"), "fine-tuned")
    return f"{model['name']}, {'of random weights' if settings.get('weights') == 'none' else 'pretrained'}, {way}"


def option_words(option: Option, value: Any) -> list[str]:
    """A setting's words on the command line."""
    if isinstance(value, bool):
        return [option.flag if value else f"--no-{option.name}"]
    text = as_text(value)
    return [f"{option.flag}={text}"] if text.startswith("-") else [option.flag, text]


def _test_words(report: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """The options of a test: its checkpoint or the folder of its model, its data, and what was set for it."""
    words = ["--checkpoint", report["checkpoint"]["uri"].removesuffix(f"/{WEIGHTS}")]
    for key in dict.fromkeys(["data.uri", *report.get("given", ()), "run.run_id"]):
        section, _, field = key.partition(".")
        value = report["run_id"] if key == "run.run_id" else report["settings"].get(section, {}).get(field)
        if key in known and value is not None:
            words += option_words(known[key][0], value)
    return [*words, *(["--tta", report["test_tta"]["tta"]] if report.get("test_tta") else [])]


def _plain(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a file has them, without tuples."""
    return dict(json.loads(json.dumps(sections)))
