"""The exported model: model.safetensors, whose bytes depend on the weights alone, and model.json, which rebuilds it.

The weights have the names of the library that the network comes from, so that torchvision or timm loads them, and timm
also where its network is the same. The first layer is ours, so its two buffers are in model.json.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inat_job.errors import BadDataError, ConflictError, UsageError, last_line
from inat_job.models import backbones, five_block
from inat_job.models.model_files import DESCRIPTION, FORMAT_VERSION, WEIGHTS, check_digest, read_description
from inat_job.models.strategies import Architecture
from inat_job.storage.disk import sha256_of

_FIRST_LAYER, _BACKBONE = "preprocess.", "backbone."
"""Prefixes of the first layer's buffers and of a backbone's weights."""


def export(architecture: Architecture, folder: Path, description: Mapping[str, Any]) -> None:
    """Write the weights, and model.json with `description` (classes, preprocessing) and the architecture.

    Raises ConflictError if the folder cannot be written.
    """
    state = architecture.network.state_dict()
    # A channels-last tensor would be written in another order.
    tensors = {name: each.detach().cpu().contiguous() for name, each in state.items()}
    weights = {name.removeprefix(_BACKBONE): each for name, each in tensors.items() if not _is_first_layer(name)}
    full = {"format_version": FORMAT_VERSION, "architecture": architecture.blueprint, **description}
    full["normalisation"] = {  # of pixels in 0..255, by channel
        name.removeprefix(_FIRST_LAYER): each.flatten().tolist()
        for name, each in tensors.items()
        if _is_first_layer(name)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / WEIGHTS)
        (folder / DESCRIPTION).touch()
        (folder / WEIGHTS).chmod((folder / DESCRIPTION).stat().st_mode)  # as the process's umask has it; it was 0600
        full["weights"] = {"file": WEIGHTS, "sha256": sha256_of(folder / WEIGHTS)}
        (folder / DESCRIPTION).write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ConflictError(
            f"{folder} cannot be written ({error}): free some disk space, or choose another folder."
        ) from error


def load_exported(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in eval mode on the CPU, and its description. Raises BadDataError unless both are intact."""
    description = read_description(folder / DESCRIPTION)
    try:
        check_digest(folder / WEIGHTS, description["weights"]["sha256"])
        network = rebuild(description["architecture"])
        network.load_state_dict(_full_state(load_file(folder / WEIGHTS), description), strict=True)
    except (OSError, SafetensorError, RuntimeError, LookupError, TypeError, ValueError, UsageError) as error:
        raise BadDataError(
            f"{folder} holds no model that this version can load ({last_line(error)}): export it again."
        ) from None
    return network.eval(), description


def _is_first_layer(name: str) -> bool:
    return name.startswith(_FIRST_LAYER)


def _full_state(weights: dict[str, Tensor], description: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's state dict; models of earlier versions have all of it in their weights."""
    if "normalisation" not in description:
        return weights
    prefix = _BACKBONE if description["architecture"]["kind"] in backbones.KINDS else ""
    first = {
        f"{_FIRST_LAYER}{name}": torch.tensor(values).view(1, 3, 1, 1)
        for name, values in description["normalisation"].items()
    }
    return first | {f"{prefix}{name}": each for name, each in weights.items()}


def rebuild(blueprint: Mapping[str, Any]) -> nn.Module:
    """The network of an `Architecture.blueprint` with arbitrary weights; torch's random state is left as it was.

    Raises LookupError or TypeError for values that are no blueprint, and ConflictError without the package that the
    network is from.
    """
    with torch.random.fork_rng(devices=[]):
        return _BUILDERS[blueprint["kind"]](dict(blueprint)).network


def _five_block(blueprint: dict[str, Any]) -> Architecture:
    return five_block.build_five_block(five_block.spec_from_blueprint(blueprint))


def _backbone(blueprint: dict[str, Any]) -> Architecture:
    return backbones.build_backbone(blueprint["name"], blueprint["num_classes"], blueprint["image_size"])


_BUILDERS: dict[str, Callable[[dict[str, Any]], Architecture]] = {
    five_block.KIND: _five_block,
    **dict.fromkeys(backbones.KINDS, _backbone),
}
