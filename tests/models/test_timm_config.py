"""timm loads a model/ folder where config.json says that it does, and has the same logits there."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from inat_job.models.backbones import build_backbone
from inat_job.models.export import DESCRIPTION, export
from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.models.preprocess import IMAGENET_MEAN
from inat_job.models.timm_config import CONFIG, timm_config

FIELDS = {"classes": ["a", "b", "c"], "preprocessing": {"image_size": 64, "eval_crop": 0.875}}


def exported(name: str, folder: Path) -> tuple[nn.Module, dict[str, object] | None]:
    """A network whose batch norm has statistics of its own, exported with its config.json."""
    torch.manual_seed(0)
    architecture = build_backbone(name, 3, 64)
    for module in architecture.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    export(architecture, folder, FIELDS)
    config = timm_config(json.loads((folder / DESCRIPTION).read_text()))
    (folder / CONFIG).write_text(json.dumps(config))
    return architecture.network.eval(), config


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet50", "resnext50_32x4d", "densenet121"),
        pytest.param("wide_resnet50_2", marks=pytest.mark.soak),
    ],
)
def test_timm_loads_the_folder_with_equal_logits(name: str, tmp_path: Path) -> None:
    network, _ = exported(name, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.pretrained_cfg["label_names"] == FIELDS["classes"]
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).float()
    mean, std = (torch.tensor(loaded.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(loaded((pixels / 255 - mean) / std), network(pixels), atol=1e-4, rtol=1e-5)


def test_timm_cuts_its_views_from_our_config(tmp_path: Path) -> None:
    exported("resnet18", tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    found = timm.data.resolve_model_data_config(loaded)
    assert (tuple(found["input_size"]), found["crop_pct"], found["interpolation"]) == ((3, 64, 64), 0.875, "bilinear")
    assert found["mean"] == pytest.approx(IMAGENET_MEAN)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b5", "vgg11", "convnext_tiny"])
def test_no_config_for_a_network_that_timm_lacks_or_has_otherwise(name: str) -> None:
    blueprint = {"kind": "torchvision", "name": name, "num_classes": 3, "image_size": 64}
    normalisation = {"mean": [1.0] * 3, "std": [1.0] * 3}
    assert timm_config({"architecture": blueprint, "normalisation": normalisation, **FIELDS}) is None


def test_no_config_for_part_a(tmp_path: Path) -> None:
    spec = FiveBlockSpec((4,) * 5, (3,) * 5, "relu", 6, "gap", True, 0.1, 64, 3)
    export(build_five_block(spec), tmp_path, FIELDS)
    assert timm_config(json.loads((tmp_path / DESCRIPTION).read_text())) is None
