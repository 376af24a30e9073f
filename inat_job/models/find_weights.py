"""Pretrained weights on disk or behind an address: parsed, found and verified without importing torch.

`preflight` checks them before a job, and `build` loads them in it. torchvision's URLs are read from its source, since
importing it takes seconds; a test compares them with its own.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path

from inat_job.errors import BadDataError, UsageError
from inat_job.options import public_uri
from inat_job.settings import WEIGHTS_NAME, BackboneSettings
from inat_job.signals import Stop, never
from inat_job.storage import Entry, StorageOptions, Store, open_store, split_uri
from inat_job.storage.disk import disk_errors, megabytes, sha256_of
from inat_job.storage.interruptible import interruptible


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
    return WeightsReference(source, fragment.removeprefix("sha256=").lower())


def stat_weights(uri: str, options: StorageOptions, stop: Stop = never) -> tuple[Store, Entry]:
    """The store and the entry of a file behind a URI. Raises BadDataError if it does not exist, and Preempted."""
    parent, key = split_uri(uri)
    store = open_store(parent, replace(options, flag="--weights"))
    entry = interruptible(store, stop).stat(key)
    if entry is None:
        raise BadDataError(f"--weights is {public_uri(uri)}, which does not exist: check it.")
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


def unknown_name(name: str, backbone: str, known: Iterable[str]) -> UsageError:
    """The error for a name of weights that this backbone does not have."""
    listed = ", ".join(known) or "no names"
    return UsageError(f"--weights is {name!r}: torchvision has {listed} for {backbone}; or give a file, or none.")


@singledispatch
def check_names(settings: object) -> None:
    """Raise UsageError for a network or weights that no download could make valid. Makes no request."""


@check_names.register
def _(settings: BackboneSettings) -> None:
    known = {name for text in _sources() for name, _ in _BUILDER.findall(text)}
    if settings.backbone not in known:
        raise unknown_backbone(settings.backbone, known)
    weights = parse_weights(settings.weights)
    if weights.is_name and weights.source != "none" and not weights_url(settings.backbone, weights.source):
        raise _without_weights(settings.backbone)
    if weights.is_uri:
        open_store(split_uri(weights.source)[0])


def unknown_backbone(name: str, known: Iterable[str]) -> UsageError:
    """The error for the name of a network that torchvision does not have."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return UsageError(f"--backbone is {name!r}, which torchvision does not have: did you mean {near}?")


def _without_weights(backbone: str) -> UsageError:
    return UsageError(f"--backbone is {backbone!r}, for which torchvision has no weights: name a file.")


@singledispatch
def find_weights(settings: object, torch_folder: Path, options: StorageOptions) -> str | None:
    """Where the initial weights of a network are, for people; None for a network without any.

    `torch_folder` is where torch keeps downloaded weights. Raises UsageError, BadDataError and what the store raises.
    """
    return None


@find_weights.register
def _(settings: BackboneSettings, torch_folder: Path, options: StorageOptions) -> str | None:
    weights = parse_weights(settings.weights)
    if weights.source == "none":
        return None
    if weights.is_name:
        url = weights_url(settings.backbone, weights.source)
        if url is None:
            raise _without_weights(settings.backbone)
        local = torch_folder / url.rpartition("/")[2]
        return f"{local}, already downloaded" if local.exists() else _describe_remote(url, options)
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


_BUILDER = re.compile(r"^def (\w+)\(\s*\*,\s*weights: Optional\[(\w+)\]", re.M)
_WEIGHTS = re.compile(r"^class (\w+)\(WeightsEnum\):\n(.*?)(?=^\S|\Z)", re.M | re.S)
_MEMBER = re.compile(r"^    (\w+) = Weights\((?:\s*#[^\n]*\n)*\s*url=\"([^\"]+)\"", re.M)
_ALIAS = re.compile(r"^    (\w+) = ([A-Z]\w+)$", re.M)


def weights_url(backbone: str, name: str) -> str | None:
    """The URL of the weights `name` of a backbone; None if torchvision's source has none for this backbone.

    Raises UsageError for a name that this backbone does not have.
    """
    for text in _sources():
        kind = dict(_BUILDER.findall(text)).get(backbone)
        if kind is None:
            continue
        body = dict(_WEIGHTS.findall(text)).get(kind, "")
        known = dict(_MEMBER.findall(body))
        known |= {alias: known[target] for alias, target in _ALIAS.findall(body) if target in known}
        if known and name.removeprefix(f"{kind}.") not in known:
            raise unknown_name(name, backbone, known)
        return known.get(name.removeprefix(f"{kind}."))
    return None


def _sources() -> list[str]:
    spec = importlib.util.find_spec("torchvision")
    folders = [*(spec.submodule_search_locations or ())] if spec else []
    return [path.read_text() for folder in folders for path in sorted(Path(folder, "models").glob("*.py"))]
