"""The exported model: model.safetensors, whose bytes depend on the weights alone, and model.json, which rebuilds it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.models import backbones, five_block
from inat_job.models.strategies import Architecture
from inat_job.storage.disk import parse_json, sha256_of

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
FORMAT_VERSION = 1


def export(architecture: Architecture, folder: Path, description: Mapping[str, Any]) -> None:
    """Write the weights, and model.json with `description` (classes, preprocessing) and the architecture.

    Raises ConflictError if the folder cannot be written.
    """
    state = architecture.network.state_dict()
    # A channels-last tensor would be written in another order.
    tensors = {name: each.detach().cpu().contiguous() for name, each in state.items()}
    full = {"format_version": FORMAT_VERSION, "architecture": architecture.blueprint, **description}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS)
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
    description = _read_description(folder / DESCRIPTION)
    weights = folder / WEIGHTS
    try:
        if (digest := sha256_of(weights)) != description["weights"]["sha256"]:
            raise BadDataError(f"{weights} has the sha256 {digest}, not the one in {DESCRIPTION}: export it again.")
        network = rebuild(description["architecture"])
        network.load_state_dict(load_file(weights), strict=True)
    except (OSError, SafetensorError, RuntimeError, LookupError, TypeError, ValueError, UsageError) as error:
        reason = (str(error).splitlines() or [""])[-1].strip()
        raise BadDataError(f"{folder} holds no exported model ({reason}): export it again.") from None
    return network.eval(), description


def rebuild(blueprint: Mapping[str, Any]) -> nn.Module:
    """The network of an `Architecture.blueprint` with arbitrary weights; torch's random state is left as it was.

    Raises LookupError or TypeError for values that are no blueprint.
    """
    with torch.random.fork_rng(devices=[]):
        return _BUILDERS[blueprint["kind"]](dict(blueprint)).network


def _five_block(blueprint: dict[str, Any]) -> Architecture:
    return five_block.build_five_block(five_block.spec_from_blueprint(blueprint))


def _torchvision(blueprint: dict[str, Any]) -> Architecture:
    return backbones.build_backbone(blueprint["name"], blueprint["num_classes"], blueprint["image_size"])


_BUILDERS: dict[str, Callable[[dict[str, Any]], Architecture]] = {
    five_block.KIND: _five_block,
    backbones.KIND: _torchvision,
}


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path} cannot be read as a model's description ({error}): export it again.") from None
    if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
        raise BadDataError(f"{path} does not have format version {FORMAT_VERSION}: export it again with this version.")
    return description
