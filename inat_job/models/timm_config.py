"""config.json in the form of timm and of the Hugging Face hub, for timm's networks and those that it has too.

https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_hub.py (`load_model_config_from_path`)
"""

import re
from collections.abc import Mapping
from typing import Any

from inat_job import timm_networks
from inat_job.models.backbones import TIMM, TORCHVISION

CONFIG = "config.json"
_SAME = re.compile(r"resnet(18|34|50|101|152)|wide_resnet(50|101)_2|resnext(50_32x4d|101_(32x8|64x4)d)|densenet\d+")
"""Networks with the same names of weights and the same arithmetic in both; tests/models/test_timm_config.py."""


def timm_config(description: Mapping[str, Any]) -> dict[str, Any] | None:
    """What lets timm load a model/ folder: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    `description` is the content of model.json. None if timm has no such network, or another one of that name.
    """
    architecture, normalisation = description["architecture"], description["normalisation"]
    name, model_args = architecture.get("name", ""), {}
    if architecture["kind"] == TIMM:
        model_args = timm_networks.size_argument(name, architecture["image_size"])
        name = timm_networks.pretrained_cfg(name).architecture
    elif architecture["kind"] != TORCHVISION or not _SAME.fullmatch(name):
        return None
    preprocessing = description["preprocessing"]
    return {
        "architecture": name,
        "model_args": model_args,
        "num_classes": architecture["num_classes"],
        "label_names": list(description["classes"]),
        "pretrained_cfg": {
            "input_size": [3, preprocessing["image_size"], preprocessing["image_size"]],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": preprocessing["eval_crop"],
            "crop_mode": "center",
            "mean": [round(value / 255, 6) for value in normalisation["mean"]],
            "std": [round(value / 255, 6) for value in normalisation["std"]],
        },
    }
