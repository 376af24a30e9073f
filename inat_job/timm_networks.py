"""What timm knows about its networks: their names, how they are made, the weights that a name stands for.

timm is an optional package, and importing it imports torch, so that nothing here runs but for `--backbone timm/NAME`.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Any

from inat_job.errors import ConflictError, UsageError

_PREFIX = "timm/"
_WEIGHTS = "model.safetensors"
"""The file of weights in a network's repository on the Hugging Face hub."""


def is_timm(backbone: str) -> bool:
    """Whether the value of `--backbone` is a network of timm."""
    return backbone.startswith(_PREFIX)


@cache
def pretrained_cfg(backbone: str) -> Any:
    """timm's `PretrainedCfg` of timm/NAME: the weights of NAME's tag, and how their images were prepared.

    Raises ConflictError without timm, UsageError for an unknown name and a network that is no classifier.
    """
    timm, name = _timm(backbone), backbone.removeprefix(_PREFIX)
    known = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), cutoff=0.0)
        listed = ", ".join(f"{_PREFIX}{each}" for each in near)
        raise UsageError(f"--backbone is {backbone!r}, which timm does not have: did you mean one of {listed}?")
    found = timm.get_pretrained_cfg(name)
    if not found.classifier:
        raise UsageError(f"--backbone is {backbone!r}, which is no image classifier: choose another.")
    return found


def eval_crop(backbone: str) -> float:
    """The share of the short side that the centre crop kept when the weights were tested; 1 if it had a margin too."""
    return min(1.0, float(pretrained_cfg(backbone).crop_pct))


def create(backbone: str, num_classes: int, image_size: int) -> Any:
    """The network, an nn.Module with fresh weights; one of a fixed size is made for images of this one.

    Raises what timm raises for a size that the network cannot have.
    """
    name, size = backbone.removeprefix(_PREFIX), size_argument(backbone, image_size)
    return _timm(backbone).create_model(name, num_classes=num_classes, **size)


def size_argument(backbone: str, image_size: int) -> dict[str, int]:
    """The argument that names the image size, for a network of a fixed size; none for others."""
    return {"img_size": image_size} if pretrained_cfg(backbone).fixed_input_size else {}


def parameter_groups(network: Any) -> list[list[str]]:
    """The network's parameter names in the groups of timm's own decay by layers, from the stem to the head."""
    from timm.models import group_parameters

    return list(group_parameters(network, network.group_matcher(coarse=True)).values())


def weights_url(backbone: str, name: str) -> str:
    """The URL of the weights that the tag of a network means, for `--weights DEFAULT`. Raises UsageError for others."""
    if name != "DEFAULT":
        raise UsageError(
            f"--weights is {name!r}: which weights of timm is part of the network's name, such as in --backbone "
            "timm/resnet50.a1_in1k; or give a file, or none."
        )
    cfg = pretrained_cfg(backbone)
    if cfg.hf_hub_id:
        return str(_hub().hf_hub_url(cfg.hf_hub_id, _WEIGHTS))
    if cfg.url:
        return str(cfg.url)
    raise UsageError(f"--backbone is {backbone!r}, for which timm has no weights: name a file by --weights, or none.")


def cached_weights(backbone: str) -> Path | None:
    """The same weights in the hub's cache on this machine, where timm itself puts them; None if they are not there."""
    cfg = pretrained_cfg(backbone)
    found = _hub().try_to_load_from_cache(cfg.hf_hub_id, _WEIGHTS) if cfg.hf_hub_id else None
    return Path(found) if isinstance(found, str) else None


def _timm(backbone: str) -> Any:
    try:
        import timm  # optional
    except ModuleNotFoundError as error:
        raise ConflictError(
            f"--backbone is {backbone!r}, which needs timm, and {error.name} is not installed: pip install timm, or "
            "build the image with --build-arg EXTRAS=timm."
        ) from None
    return timm


def _hub() -> Any:
    import huggingface_hub  # which timm needs

    return huggingface_hub
