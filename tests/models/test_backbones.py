"""torchvision's networks as Part B uses them: stages, head, size, and names and sizes that are refused."""

import pytest
import torch
from torchvision.models import get_model_weights

from inat_job.errors import UsageError
from inat_job.models.backbones import build_backbone
from inat_job.models.flops import network_size
from inat_job.models.strategies import Architecture, has_prefix

# The image size that torchvision's own figure of multiply-adds is for.
MODELS = {
    "resnet18": 224,
    "resnet50": 224,
    "densenet121": 224,
    "efficientnet_v2_s": 384,
    "vit_b_16": 224,
    "convnext_tiny": 224,
    "swin_t": 224,
    "googlenet": 224,
    "mobilenet_v3_small": 224,
    "regnet_x_400mf": 224,
    "shufflenet_v2_x0_5": 224,
    "mnasnet0_5": 224,
}


def _stage_sizes(architecture: Architecture) -> list[int]:
    parameters = list(architecture.network.named_parameters())
    return [sum(each.numel() for name, each in parameters if has_prefix(name, stage)) for stage in architecture.stages]


LARGE = ("efficientnet_v2_s", "vit_b_16", "convnext_tiny", "swin_t", "googlenet")


@pytest.mark.parametrize(
    ("name", "image_size"),
    [pytest.param(*each, marks=[pytest.mark.soak] if each[0] in LARGE else []) for each in MODELS.items()],
)
def test_stages_and_head_cover_every_parameter_once_and_size_is_torchvisions(name: str, image_size: int):
    architecture = build_backbone(name, 1000, image_size)
    groups = (*architecture.stages, architecture.head)
    for parameter, _ in architecture.network.named_parameters():
        assert sum(has_prefix(parameter, prefixes) for prefixes in groups) == 1, parameter
    assert 4 <= len(architecture.stages) <= 5
    assert min(_stage_sizes(architecture)) > 0
    meta = get_model_weights(name).DEFAULT.meta
    size = network_size(architecture.network, image_size)
    assert size.parameters == meta["num_params"]
    assert size.macs / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet18"])
def test_stages_run_from_stem_to_head(name: str):
    architecture = build_backbone(name, 3, 64)
    order = [parameter for parameter, _ in architecture.network.named_parameters()]
    groups = (*architecture.stages, architecture.head)
    stage_of = [next(n for n, prefixes in enumerate(groups) if has_prefix(parameter, prefixes)) for parameter in order]
    assert stage_of == sorted(stage_of)


def test_resnet_stages_are_divided_where_maps_get_smaller():
    architecture = build_backbone("resnet18", 3, 64)
    assert architecture.stages == (
        ("backbone.conv1", "backbone.bn1"),
        ("backbone.layer1",),
        ("backbone.layer2",),
        ("backbone.layer3",),
        ("backbone.layer4",),
    )
    assert architecture.head == ("backbone.fc",)


def test_uint8_pixels_become_logits_of_num_classes():
    network = build_backbone("resnet18", 7, 32).network.eval()
    assert network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 7)


def test_misspelt_backbone_suggests_the_nearest_name():
    with pytest.raises(UsageError, match=r"--backbone is 'resnet5O'.* mean resnet50\?"):
        build_backbone("resnet5O", 10)


def test_backbone_without_a_dense_head_is_refused():
    with pytest.raises(UsageError, match="--backbone is squeezenet1_0"):
        build_backbone("squeezenet1_0", 10)


@pytest.mark.parametrize(("name", "image_size"), [("vit_b_32", 225), ("alexnet", 32), ("maxvit_t", 100)])
def test_unsupported_image_size_is_refused(name: str, image_size: int):
    with pytest.raises(UsageError, match=f"--image-size is {image_size}, which {name} cannot take"):
        build_backbone(name, 10, image_size)
