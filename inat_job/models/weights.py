"""Pretrained weights for a backbone: found by name or file, believed by hash, and loaded only if they belong to it."""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.vision_transformer import interpolate_embeddings

from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.models.backbones import BackboneNet
from inat_job.models.strategies import Architecture, has_prefix
from inat_job.settings import WEIGHTS_NAME
from inat_job.storage.disk import sha256_of

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|safetensors)")  # torch.hub's convention
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # classifiers of GoogLeNet and Inception that only help training
# torchvision's own DenseNet files were saved before submodules' names lost their dots.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


@dataclass(frozen=True)
class LoadedWeights:
    """What was loaded: `missing` are the tensors beside the head's that kept their fresh values."""

    source: str
    sha256: str
    loaded: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class KeyMatch:
    """How the keys of a file fit a backbone's, the head left out of `missing` and `misshapen`."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    misshapen: tuple[str, ...]


def is_weights_name(weights: str) -> bool:
    """Whether `--weights` names weights of torchvision, such as DEFAULT or ResNet50_Weights.IMAGENET1K_V2."""
    return re.fullmatch(WEIGHTS_NAME, weights) is not None


def named_weights(backbone: str, name: str) -> WeightsEnum:
    """torchvision's entry, whose `.url` is the file. Raises UsageError that lists the names there are."""
    known = get_model_weights(backbone)
    short = name.removeprefix(f"{known.__name__}.")
    if short not in known.__members__:
        listed = ", ".join(known.__members__) or "no names"
        raise UsageError(f"--weights is {name!r}: torchvision has {listed} for {backbone}; or give a file, or none.")
    return known[short]


def load_weights(
    architecture: Architecture, path: Path, *, sha256: str | None = None, allow_partial: bool = False
) -> LoadedWeights:
    """Load a file into a backbone.

    A head of another class count is left as it is. Raises BadDataError for a file that is missing, damaged or no state
    dict of tensors, and ConflictError for weights that lack layers or have foreign ones (accepted with
    `allow_partial`), or that don't fit at all.
    """
    digest = _verified(path, sha256)
    network = architecture.network
    assert isinstance(network, BackboneNet)
    own = network.backbone.state_dict()
    given = _adapted(read_state(path), own, architecture)
    head = [prefix.removeprefix("backbone.") for prefix in architecture.head]
    match = match_keys(own, given, head)
    _judge(match, f"--weights {path}", architecture.name, allow_partial)
    with torch.no_grad():
        for key in match.matched:
            own[key].copy_(given[key])
    _normalise(network, architecture.name, path.name)
    return LoadedWeights(str(path), digest, len(match.matched), match.missing)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a .safetensors file or torch.save's state dict, also under "state_dict" or "model".

    Nothing in the file is run. Raises BadDataError.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except pickle.UnpicklingError:
        raise BadDataError(
            f"{path} holds more than tensors, which is not run here: save its state dict alone."
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise BadDataError(f"{path} cannot be read as weights ({_first_line(error)}): fetch it again.") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(each, Tensor) for each in state.values()):
        raise BadDataError(f"{path} is no state dict, which maps names to tensors: save its state dict alone.")
    return dict(state)


def match_keys(own: Mapping[str, Tensor], given: Mapping[str, Tensor], head: list[str]) -> KeyMatch:
    """KeyMatch the keys and shapes of `given` to a backbone's; a head fits or is left out."""
    both = [key for key in own if key in given]
    fitting = tuple(key for key in both if own[key].shape == given[key].shape)
    body = [key for key in own if not has_prefix(key, head)]
    return KeyMatch(
        matched=fitting,
        # Counts of batches are absent from files older than torch 0.4.1, and no forward pass needs them.
        missing=tuple(key for key in body if key not in given and not key.endswith("num_batches_tracked")),
        foreign=tuple(key for key in given if key not in own and not has_prefix(key, _AUXILIARY)),
        misshapen=tuple(key for key in both if key not in fitting and not has_prefix(key, head)),
    )


def _judge(match: KeyMatch, what: str, backbone: str, allow_partial: bool) -> None:
    """Raise ConflictError if these weights are not this backbone's."""
    if not match.matched:
        raise ConflictError(f"{what} fits {backbone} in no tensor (it has {_some(match.foreign)}): change --backbone.")
    if match.misshapen:
        raise ConflictError(f"{what} has other shapes than {backbone} in {_some(match.misshapen)}: change --backbone.")
    if match.missing and not allow_partial:
        raise ConflictError(
            f"{what} lacks {_some(match.missing)} of {backbone}: give complete weights, or accept these with "
            "--allow-partial-weights."
        )
    if match.foreign and not allow_partial:
        raise ConflictError(
            f"{what} has {_some(match.foreign)}, which {backbone} has not: change --backbone, or leave them out with "
            "--allow-partial-weights."
        )


def _verified(path: Path, sha256: str | None) -> str:
    """The file's digest. Raises BadDataError if it is not the one asked for, or not the one in the file's name."""
    if not path.is_file():
        raise BadDataError(f"--weights names {path}, where no file is: give a file, or one of torchvision's names.")
    digest = sha256_of(path)
    in_name = _HASH_IN_NAME.search(path.name)
    expected = sha256.lower() if sha256 else in_name[1] if in_name else ""
    if not digest.startswith(expected):
        raise BadDataError(f"{path} has the sha256 {digest} instead of {expected}: delete it and fetch it again.")
    return digest


def _unpickled(path: Path) -> Any:
    # Files older than torch 1.6 are no zip archives and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _adapted(given: dict[str, Tensor], own: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Old names made new, and a vision transformer's positions interpolated to this image size."""
    given = {_OLD_DENSENET.sub(r"\1\2", key): each for key, each in given.items()}
    positions = given.get("encoder.pos_embedding")
    if positions is None or "encoder.pos_embedding" not in own or positions.ndim != 3:
        return given
    patch = own["conv_proj.weight"].shape[-1]
    try:
        return dict(interpolate_embeddings(architecture.blueprint["image_size"], patch, OrderedDict(given)))
    except ValueError:  # not a square of patches: `match_keys` names the shape
        return given


def _normalise(network: BackboneNet, backbone: str, file_name: str) -> None:
    """Where torchvision knows the file, take the statistics that it was trained with."""
    for each in get_model_weights(backbone):
        if each.url.endswith(f"/{file_name}"):
            transforms = each.transforms()
            network.preprocess.normalise_by(transforms.mean, transforms.std)
            return


def _some(keys: tuple[str, ...]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more" if keys else "nothing"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
