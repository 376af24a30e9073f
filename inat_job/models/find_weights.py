"""Whether pretrained weights are on disk or can be downloaded, found out before a job without importing torch.

torchvision's URLs are read from its source, since importing it takes seconds. A test compares them with its own.
"""

import importlib.util
import re
from functools import singledispatch
from pathlib import Path

from inat_job.errors import BadDataError, UsageError
from inat_job.options import public_uri
from inat_job.settings import WEIGHTS_NAME, BackboneSettings
from inat_job.storage import StorageOptions, open_store, split_uri
from inat_job.storage.disk import disk_errors, sha256_of


@singledispatch
def find_weights(settings: object, kept: Path, options: StorageOptions) -> str | None:
    """Where the weights are that a network begins with, for people, or None where it needs none.

    `kept` is where torch keeps such files. Raises UsageError, BadDataError, and what the store raises.
    """
    return None


@find_weights.register
def _(settings: BackboneSettings, kept: Path, options: StorageOptions) -> str | None:
    uri, mark, fragment = settings.weights.partition("#")
    if uri == "none":
        return None
    if mark and not re.fullmatch(r"sha256=[0-9a-fA-F]{64}", fragment):
        raise UsageError(f"--weights ends in #{fragment}: write #sha256= and 64 hexadecimal digits.")
    if re.fullmatch(WEIGHTS_NAME, uri):
        address = weights_url(settings.backbone, uri)
        if address is None:
            raise UsageError(f"--backbone is {settings.backbone!r}, for which torchvision has no weights: name a file.")
        here = kept / address.rpartition("/")[2]
        return f"{here}, here already" if here.exists() else _far(address, options)
    if "://" in uri:
        return _far(uri, options)
    return _file(Path(uri), fragment.removeprefix("sha256=").lower())


def _far(uri: str, options: StorageOptions) -> str:
    parent, key = split_uri(uri)
    store = open_store(parent, options)
    entry = store.stat(key)
    if entry is None:
        raise BadDataError(f"--weights names {public_uri(uri)}, which does not exist: check it.")
    if entry.version and entry.size > 0:
        store.read_range(entry, 0, 1)
    size = f", {entry.size / 1e6:,.0f} MB" if entry.size > 0 else ""
    return f"{public_uri(uri)}{size}, to be fetched"


def _file(path: Path, sha256: str) -> str:
    if not path.is_file():
        raise BadDataError(f"--weights names {path}, where no file is: give a file, or one of torchvision's names.")
    with disk_errors(path):
        digest = sha256_of(path) if sha256 else ""
        path.open("rb").close()
    if digest != sha256:
        raise BadDataError(f"{path} has the sha256 {digest} instead of {sha256}: delete it and fetch it again.")
    return f"{path}, {path.stat().st_size / 1e6:,.0f} MB"


_BUILDER = re.compile(r"^def (\w+)\(\s*\*,\s*weights: Optional\[(\w+)\]", re.M)
_WEIGHTS = re.compile(r"^class (\w+)\(WeightsEnum\):\n(.*?)(?=^\S|\Z)", re.M | re.S)
_MEMBER = re.compile(r"^    (\w+) = Weights\((?:\s*#[^\n]*\n)*\s*url=\"([^\"]+)\"", re.M)
_ALIAS = re.compile(r"^    (\w+) = ([A-Z]\w+)$", re.M)


def weights_url(backbone: str, name: str) -> str | None:
    """The address of a backbone's weights by `--weights`' name; None where torchvision's source does not tell.

    Raises UsageError for a name that this backbone has not.
    """
    for text in _sources():
        kind = dict(_BUILDER.findall(text)).get(backbone)
        if kind is None:
            continue
        body = dict(_WEIGHTS.findall(text)).get(kind, "")
        known = dict(_MEMBER.findall(body))
        known |= {alias: known[meant] for alias, meant in _ALIAS.findall(body) if meant in known}
        if known and name.removeprefix(f"{kind}.") not in known:
            raise UsageError(
                f"--weights is {name!r}: torchvision has {', '.join(known)} for {backbone}; or give a file."
            )
        return known.get(name.removeprefix(f"{kind}."))
    return None


def _sources() -> list[str]:
    spec = importlib.util.find_spec("torchvision")
    folders = [*(spec.submodule_search_locations or ())] if spec else []
    return [path.read_text() for folder in folders for path in sorted(Path(folder, "models").glob("*.py"))]
