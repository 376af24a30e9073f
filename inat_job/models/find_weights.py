"""Pretrained weights on disk or behind an address: parsed, found and verified without importing torch.

`preflight` checks them before a job, and `build` loads them in it.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path

from inat_job import timm_networks
from inat_job.address import expanded
from inat_job.errors import BadDataError, UsageError
from inat_job.options import public_uri
from inat_job.settings import WEIGHTS_NAME, BackboneSettings
from inat_job.signals import Stop, never
from inat_job.storage import Entry, StorageOptions, Store, open_store, split_uri
from inat_job.storage.disk import disk_errors, megabytes, sha256_of
from inat_job.storage.interruptible import interruptible
from inat_job.storage.local import missing_object
from inat_job.torchvision_weights import known_backbones, weights_url


@dataclass(frozen=True)
class WeightsReference:
    """The value of `--weights`: a name, path or URI, and the SHA-256 asked for, in lower case, or an empty string."""

    source: str
    sha256: str

    @property
    def is_name(self) -> bool:
        """Whether it names weights of torchvision, such as DEFAULT or ResNet50_Weights.IMAGENET1K_V2."""
        return re.fullmatch(WEIGHTS_NAME, self.source) is not None

    @property
    def is_uri(self) -> bool:
        """Whether it must be downloaded."""
        return "://" in self.source


def parse_weights(value: str) -> WeightsReference:
    """The parts of `--weights`. Raises UsageError for a fragment that is no SHA-256."""
    source, mark, fragment = value.partition("#")
    if mark and not re.fullmatch(r"(sha256=)?[0-9a-fA-F]{64}", fragment):
        raise UsageError(f"--weights ends in #{fragment}: write #sha256= and 64 hexadecimal digits.")
    return WeightsReference(expanded(source), fragment.removeprefix("sha256=").lower())


def stat_weights(uri: str, options: StorageOptions, stop: Stop = never) -> tuple[Store, Entry]:
    """The store and the entry of a file behind a URI. Raises BadDataError if it does not exist, and Preempted."""
    parent, key = split_uri(uri)
    store = open_store(parent, replace(options, flag="--weights"))
    entry = interruptible(store, stop).stat(key)
    if entry is None:
        raise missing_object(store, key, public_uri(uri), "--weights")
    return store, entry


def require_file(path: Path) -> None:
    """Raise BadDataError unless `path` is a file."""
    if not path.is_file():
        raise BadDataError(
            f"--weights is {path}, which is not a file: give a file, or a name of torchvision's weights."
        )


def verified_digest(path: Path, expected: str) -> str:
    """SHA-256 of a file, in hexadecimal. Raises BadDataError unless it begins with `expected`."""
    digest = sha256_of(path)
    if not digest.startswith(expected):
        raise BadDataError(f"{path} has the sha256 {digest} instead of {expected}: delete it and download it again.")
    return digest


@singledispatch
def check_names(settings: object) -> None:
    """Raise UsageError for a network or weights that no download could make valid, ConflictError for one that needs a
    missing package. Makes no request.
    """


@check_names.register
def _(settings: BackboneSettings) -> None:
    if timm_networks.is_timm(settings.backbone):
        timm_networks.pretrained_cfg(settings.backbone)
    elif settings.backbone not in (known := known_backbones()):
        raise unknown_backbone(settings.backbone, known)
    weights = parse_weights(settings.weights)
    if weights.is_name and weights.source != "none":
        weights_of_library(settings.backbone, weights.source, Path())
    if weights.is_uri:
        open_store(split_uri(weights.source)[0])


def unknown_backbone(name: str, known: Iterable[str]) -> UsageError:
    """The error for the name of a network that torchvision does not have."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return UsageError(f"--backbone is {name!r}, which torchvision does not have: did you mean {near}?")


def weights_of_library(backbone: str, name: str, torch_folder: Path) -> tuple[str, Path | None]:
    """The URL of named weights of torchvision or timm, and their file where the library itself keeps them, if there.

    `torch_folder` is where torch keeps downloaded weights. Raises UsageError.
    """
    if timm_networks.is_timm(backbone):
        return timm_networks.weights_url(backbone, name), timm_networks.cached_weights(backbone)
    url = weights_url(backbone, name)
    local = torch_folder / url.rpartition("/")[2]
    return url, local if local.exists() else None


@singledispatch
def find_weights(settings: object, torch_folder: Path, options: StorageOptions) -> str | None:
    """Where the initial weights of a network are, for people; None for a network without any.

    `torch_folder` is as in `weights_of_library`. Raises UsageError, BadDataError and what the store raises.
    """
    return None


@find_weights.register
def _(settings: BackboneSettings, torch_folder: Path, options: StorageOptions) -> str | None:
    weights = parse_weights(settings.weights)
    if weights.source == "none":
        return None
    if weights.is_name:
        url, local = weights_of_library(settings.backbone, weights.source, torch_folder)
        return f"{local}, already downloaded" if local else _describe_remote(url, options)
    if weights.is_uri:
        return _describe_remote(weights.source, options)
    return _describe_file(Path(weights.source), weights.sha256)


def _describe_remote(uri: str, options: StorageOptions) -> str:
    store, entry = stat_weights(uri, options)
    if entry.version and entry.size > 0:
        store.read_range(entry, 0, 1)  # permission to stat an object is no permission to read it
    size = f", {megabytes(entry.size)}" if entry.size > 0 else ""
    return f"{public_uri(uri)}{size}, to be downloaded"


def _describe_file(path: Path, sha256: str) -> str:
    require_file(path)
    with disk_errors(path):
        if sha256:
            verified_digest(path, sha256)
        path.open("rb").close()
    return f"{path}, {megabytes(path.stat().st_size)}"
