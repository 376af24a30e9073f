"""Loads pretrained weights into a backbone: verified by hash, matched by key and shape, refused if foreign."""

import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.vision_transformer import interpolate_embeddings

from inat_job import timm_networks
from inat_job.errors import BadDataError, ConflictError, first_line
from inat_job.models.backbones import BackboneNet
from inat_job.models.find_weights import require_file, verified_digest
from inat_job.models.strategies import Architecture, has_prefix

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|safetensors)")  # the convention of torch.hub
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # auxiliary classifiers of GoogLeNet and Inception, used only in training
# torchvision's DenseNet files date from when names of submodules could contain dots.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


@dataclass(frozen=True)
class LoadedWeights:
    """The result of loading: the number of tensors `loaded`, and the keys outside the head that kept fresh values.

    `statistics` says, for people, whose mean and standard deviation pixels are normalised with.
    """

    sha256: str
    loaded: int
    missing: tuple[str, ...]
    statistics: str


@dataclass(frozen=True)
class KeyMatch:
    """The keys of a file compared with a backbone's. `missing` and `misshapen` leave out the head."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    misshapen: tuple[str, ...]


def load_weights(
    architecture: Architecture, path: Path, *, sha256: str | None = None, allow_partial: bool = False
) -> LoadedWeights:
    """Load a file into a backbone.

    A head with another number of classes keeps its fresh weights. Raises BadDataError for a file that is missing,
    damaged or no state dict of tensors, and ConflictError for weights that lack layers or have foreign ones (accepted
    with `allow_partial`), or that do not fit at all.
    """
    digest = _verified(path, sha256)
    network = architecture.network
    assert isinstance(network, BackboneNet)
    own = network.backbone.state_dict()
    given = _adapted(read_state(path), own, architecture)
    head = [prefix.removeprefix("backbone.") for prefix in architecture.head]
    match = match_keys(own, given, head)
    _refuse_foreign(match, f"--weights {path}", architecture.name, allow_partial)
    with torch.no_grad():
        for key in match.matched:
            own[key].copy_(given[key])
    statistics = _normalise(network, architecture.name, path.name)
    return LoadedWeights(digest, len(match.matched), match.missing, statistics)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a .safetensors file, or in a state dict of torch.save, also under "state_dict" or "model".

    No code in the file is run. Raises BadDataError.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except pickle.UnpicklingError:
        raise BadDataError(
            f"{path} holds more than tensors, and code in it is never run: save only its state dict."
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise BadDataError(f"{path} cannot be read as weights ({first_line(error)}): download it again.") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(each, Tensor) for each in state.values()):
        raise BadDataError(f"{path} is not a state dict, which maps names to tensors: save only the state dict.")
    return dict(state)


def match_keys(own: Mapping[str, Tensor], given: Mapping[str, Tensor], head: list[str]) -> KeyMatch:
    """Compare the keys and shapes of `given` with those of a backbone, `own`; a head that does not fit is ignored."""
    both = [key for key in own if key in given]
    fitting = tuple(key for key in both if own[key].shape == given[key].shape)
    body = [key for key in own if not has_prefix(key, head)]
    return KeyMatch(
        matched=fitting,
        # Files older than torch 0.4.1 have no batch counts, and no forward pass needs them.
        missing=tuple(key for key in body if key not in given and not key.endswith("num_batches_tracked")),
        foreign=tuple(key for key in given if key not in own and not has_prefix(key, _AUXILIARY)),
        misshapen=tuple(key for key in both if key not in fitting and not has_prefix(key, head)),
    )


def _refuse_foreign(match: KeyMatch, what: str, backbone: str, allow_partial: bool) -> None:
    """Raise ConflictError if these weights do not belong to this backbone."""
    if not match.matched:
        raise ConflictError(
            f"{what} has no tensor that fits {backbone} (it has {_some(match.foreign)}): change --backbone."
        )
    if match.misshapen:
        raise ConflictError(f"{what} has another shape than {backbone} in {_some(match.misshapen)}: change --backbone.")
    if match.missing and not allow_partial:
        raise ConflictError(
            f"{what} lacks {_some(match.missing)} of {backbone}: give complete weights, or accept these with "
            "--allow-partial-weights."
        )
    if match.foreign and not allow_partial:
        raise ConflictError(
            f"{what} has {_some(match.foreign)}, which {backbone} does not have: change --backbone, or leave them "
            "out with --allow-partial-weights."
        )


def _verified(path: Path, sha256: str | None) -> str:
    """The file's digest. Raises BadDataError if it is not the one asked for, or not the one in the file's name."""
    require_file(path)
    in_name = _HASH_IN_NAME.search(path.name)
    return verified_digest(path, sha256.lower() if sha256 else in_name[1] if in_name else "")


def _unpickled(path: Path) -> Any:
    # Files older than torch 1.6 are not zip archives and cannot be memory-mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _adapted(given: dict[str, Tensor], own: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """`given` with today's names, and a vision transformer's position embedding interpolated to this image size."""
    if timm_networks.is_timm(architecture.name):
        return _adapted_by_timm(given, architecture.network.get_submodule("backbone"))
    given = {_OLD_DENSENET.sub(r"\1\2", key): each for key, each in given.items()}
    positions = given.get("encoder.pos_embedding")
    if positions is None or "encoder.pos_embedding" not in own or positions.ndim != 3:
        return given
    patch = own["conv_proj.weight"].shape[-1]
    try:
        return dict(interpolate_embeddings(architecture.blueprint["image_size"], patch, OrderedDict(given)))
    except ValueError:  # not a square of patches: `match_keys` reports the shape
        return given


def _adapted_by_timm(given: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The same by timm's function for the network's family, which also knows the names in its authors' files."""
    adapt = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(adapt(dict(given), backbone)) if adapt else given
    except Exception:  # it may raise anything for another network's weights: `match_keys` reports them
        return given


def _normalise(network: BackboneNet, backbone: str, file_name: str) -> str:
    """Set the pixel statistics that the weights were trained with, if torchvision knows the file.

    Returns whose statistics are used, for the log. A network of timm has had those of its name since it was made.
    """
    if timm_networks.is_timm(backbone):
        return f"of {backbone}"
    for each in get_model_weights(backbone):
        if each.url.endswith(f"/{file_name}"):
            transforms = each.transforms()
            network.preprocess.normalise_by(transforms.mean, transforms.std)
            return "of these weights"
    return "of ImageNet, since torchvision has no file of this name"


def _some(keys: tuple[str, ...]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more" if keys else "nothing"
