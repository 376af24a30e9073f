"""Part B's networks: torchvision's and timm's classifiers with a new head, divided into stages from stem to last.

To support another model of torchvision, give its family's stages in `_CUTS`, unless the even division of `_stages`
does; timm says itself which parameters belong together."""

import itertools
import re
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from inat_job import timm_networks
from inat_job.errors import UsageError, first_line
from inat_job.models.find_weights import unknown_backbone
from inat_job.models.flops import NetworkSize, network_size
from inat_job.models.preprocess import Preprocess
from inat_job.models.strategies import Architecture, has_prefix

KINDS = TORCHVISION, TIMM = ("torchvision", "timm")
"""The libraries, as blueprints name them."""
_STAGES = 5

# Stages by family, divided where the maps get smaller. Prefixes that a member lacks (features.8) are dropped.
_CUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    r"(wide_)?res(net|next)\d+.*": (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)),
    r"densenet\d+": (
        ("features.conv0", "features.norm0"),
        ("features.denseblock1", "features.transition1"),
        ("features.denseblock2", "features.transition2"),
        ("features.denseblock3", "features.transition3"),
        ("features.denseblock4", "features.norm5"),
    ),
    r"efficientnet_.*": (
        ("features.0", "features.1"),
        ("features.2",),
        ("features.3",),
        ("features.4", "features.5"),
        ("features.6", "features.7", "features.8"),
    ),
    r"(convnext|swin)_.*": (
        ("features.0", "features.1"),
        ("features.2", "features.3"),
        ("features.4", "features.5"),
        ("features.6", "features.7", "classifier.0", "norm"),
    ),
}
# With auxiliary classifiers they would return more than logits. `transform_input` converts ImageNet's normalisation to
# the one that their pretrained weights expect.
_INCEPTION = {"aux_logits": False, "init_weights": True, "transform_input": True}

_Unit = TypeVar("_Unit")


class BackboneNet(nn.Module):
    """Pixels (B, 3, S, S), uint8 or float in 0..255, to logits (B, classes); `backbone` has its library's key names."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.preprocess = Preprocess()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.backbone(self.preprocess(pixels))
        return logits


def build_backbone(name: str, num_classes: int, image_size: int = 224) -> Architecture:
    """A model of torchvision's registry, or timm's as timm/NAME, for `num_classes`, with fresh weights from torch's
    generator.

    Raises UsageError for an unknown name, a model whose head cannot be found, and an image size it cannot take, and
    ConflictError if timm is needed and missing.
    """
    kind, parts_of = (TIMM, _timm_parts) if timm_networks.is_timm(name) else (TORCHVISION, _torchvision_parts)
    try:
        network, heads, stages = parts_of(name, num_classes, image_size)
    except (ValueError, AssertionError) as error:
        raise _size_error(name, image_size, error) from None
    if check_size(name, network, image_size).outputs != num_classes:
        raise UsageError(f"--backbone is {name!r}, whose output is not one number a class: choose another.")
    return Architecture(
        name=name,
        network=network,
        stages=tuple(tuple(f"backbone.{prefix}" for prefix in stage) for stage in stages),
        head=tuple(f"backbone.{head}" for head in heads),
        blueprint={"kind": kind, "name": name, "num_classes": num_classes, "image_size": image_size},
    )


_Parts = tuple[BackboneNet, tuple[str, ...], tuple[tuple[str, ...], ...]]
"""A network, the names of its output layers, and the prefixes of each stage, both in its `backbone`."""


def _torchvision_parts(name: str, num_classes: int, image_size: int) -> _Parts:
    _check_name(name)
    backbone = get_model(name, weights=None, num_classes=num_classes, **_arguments(name, image_size))
    head = _head(name, backbone, num_classes)
    return BackboneNet(backbone), (head,), _stages(name, backbone, head)


def _timm_parts(name: str, num_classes: int, image_size: int) -> _Parts:
    cfg, backbone = timm_networks.pretrained_cfg(name), timm_networks.create(name, num_classes, image_size)
    network = BackboneNet(backbone)
    network.preprocess.normalise_by(cfg.mean, cfg.std)
    heads = _timm_heads(cfg.classifier)
    return network, heads, _timm_stages(backbone, heads)


def check_size(name: str, network: nn.Module, size: int, flag: str = "--image-size") -> NetworkSize:
    """Raise UsageError unless the network takes images of this size, which `flag` sets; returns its size with them."""
    try:
        return network_size(network, size)  # a forward pass on the meta device is the cheapest proof that the size fits
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _size_error(name, size, error, flag) from None


def _check_name(name: str) -> None:
    known = list_models(module=torchvision.models)
    if name not in known:
        raise unknown_backbone(name, known)


def _arguments(name: str, image_size: int) -> dict[str, Any]:
    """Additional constructor arguments that some models need."""
    if name in ("googlenet", "inception_v3"):
        return dict(_INCEPTION)
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit_"):
        return {"input_size": (image_size, image_size)}
    return {}


def _head(name: str, backbone: nn.Module, num_classes: int) -> str:
    """Name of the output layer, which in torchvision's models is the last dense layer."""
    dense: list[tuple[str, nn.Linear]] = [
        (each, module) for each, module in backbone.named_modules() if isinstance(module, nn.Linear)
    ]
    if not dense or dense[-1][1].out_features != num_classes:
        raise UsageError(f"--backbone is {name}, whose last layer is not dense: choose another, such as resnet50.")
    return dense[-1][0]


def _stages(name: str, backbone: nn.Module, head: str) -> tuple[tuple[str, ...], ...]:
    """Prefixes of parameter names by stage, which cover every parameter but the head's exactly once."""
    if name.startswith("vit_"):
        return _vit_stages(backbone)
    names = [each for each, _ in backbone.named_parameters()]
    for family, cut in _CUTS.items():
        if re.fullmatch(family, name):
            return tuple(
                tuple(prefix for prefix in stage if any(has_prefix(each, [prefix]) for each in names)) for stage in cut
            )
    return _divide_evenly(_units(backbone, head), _STAGES)


def _vit_stages(backbone: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The embedding, then the encoder's layers in four stages, the last with the final norm."""
    layers = [f"encoder.layers.{each}" for each, _ in backbone.get_submodule("encoder.layers").named_children()]
    *quarters, last = _divide_evenly(layers, 4)
    return (("class_token", "conv_proj", "encoder.pos_embedding"), *quarters, (*last, "encoder.ln"))


def _timm_heads(named: str | Collection[str]) -> tuple[str, ...]:
    """Names of the output layers, of which a distilled network has two."""
    return (named,) if isinstance(named, str) else tuple(named)


def _timm_stages(backbone: nn.Module, heads: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The stem, and at most four stages of the groups that timm divides the network into."""
    names = [each for each, _ in backbone.named_parameters()]
    try:
        grouped = timm_networks.parameter_groups(backbone)
    except (AttributeError, AssertionError):  # timm does not divide a few families
        units = _units(backbone, heads[0])
        grouped = [[each for each in names if has_prefix(each, [unit])] for unit in units]
    bodies = ([each for each in group if not has_prefix(each, heads)] for group in grouped)
    stem, *groups = (body for body in bodies if body)
    stages = ((stem,), *_divide_evenly(groups, _STAGES - 1))
    return tuple(tuple(_submodules({*itertools.chain(*stage)}, names)) for stage in stages)


def _submodules(stage: Collection[str], names: Collection[str], unit: str = "") -> list[str]:
    """The largest submodules of `unit` all of whose parameters are in the stage, of a network with these `names`."""
    inside = [each in stage for each in names if has_prefix(each, [unit])]
    if all(inside) or not any(inside):
        return [unit] if all(inside) else []
    return [found for child in _children(unit, names) for found in _submodules(stage, names, child)]


def _units(backbone: nn.Module, head: str) -> list[str]:
    """Submodules of any model, in order of registration: the largest is replaced by its children until there are more
    than `_STAGES`."""
    sizes = {name: each.numel() for name, each in backbone.named_parameters()}
    units = [""]
    while True:
        children = {unit: _children(unit, sizes) for unit in units}
        holding = [unit for unit in units if has_prefix(head, [unit]) and unit != head]
        large = [
            unit for unit in units if unit != head and not set(children[unit]) <= set(sizes)
        ]  # more than one layer
        if not holding and (len(units) > _STAGES or not large):
            return [unit for unit in units if unit != head]
        largest = max(holding or large, key=lambda unit: sum(sizes[name] for name in sizes if has_prefix(name, [unit])))
        position = units.index(largest)
        units[position : position + 1] = children[largest]


def _children(unit: str, names: Iterable[str]) -> list[str]:
    depth = unit.count(".") + 2 if unit else 1
    inside = [name for name in names if has_prefix(name, [unit])]
    return list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in inside))


def _divide_evenly(units: list[_Unit], n_stages: int) -> tuple[tuple[_Unit, ...], ...]:
    """Contiguous stages of about the same number of units, the longer ones last; at most as many as units."""
    n_stages = min(n_stages, len(units))
    bounds = [len(units) * stage // n_stages for stage in range(n_stages + 1)]
    return tuple(tuple(units[start:end]) for start, end in itertools.pairwise(bounds))


def _size_error(name: str, image_size: int, error: Exception, flag: str = "--image-size") -> UsageError:
    usual = timm_networks.pretrained_cfg(name).input_size[-1] if timm_networks.is_timm(name) else 224
    return UsageError(
        f"{flag} is {image_size}, which {name} cannot take ({first_line(error)}): {usual} is the usual size."
    )
