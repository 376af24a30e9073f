"""What torchvision knows about its pretrained weights: their addresses, and how they were tested.

It is read from torchvision's source, since importing it takes seconds; a test compares it with its own answers.
"""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from inat_job.errors import UsageError
from inat_job.options import public_uri
from inat_job.settings import WEIGHTS_NAME

_BUILDER = re.compile(r"^def (\w+)\(\s*\*,\s*weights: Optional\[(\w+)\]", re.M)
_CLASS = re.compile(r"^class (\w+)\(WeightsEnum\):\n(.*?)(?=^\S|\Z)", re.M | re.S)
_MEMBER = re.compile(r"^    (\w+) = Weights\((?:\s*#[^\n]*\n)*\s*url=\"([^\"]+)\"(.*?)^    \)", re.M | re.S)
_ALIAS = re.compile(r"^    (\w+) = ([A-Z]\w+)$", re.M)
_SIDES = re.compile(r"(crop_size|resize_size)=(\d+)")
_SIDE = 256
"""The short side that `torchvision.transforms._presets.ImageClassification` resizes to by default."""
EVAL_CROP = 0.875
"""The crop of most ImageNet networks: 224 of 256 pixels."""


def known_backbones() -> set[str]:
    """The names of torchvision's networks."""
    return {name for text in _sources() for name, _ in _BUILDER.findall(text)}


def weights_url(backbone: str, name: str) -> str:
    """The URL of the weights `name` of a backbone. Raises UsageError if there are none, and for a wrong name."""
    for text in _sources():
        kind = dict(_BUILDER.findall(text)).get(backbone)
        if kind is None:
            continue
        body = dict(_CLASS.findall(text)).get(kind, "")
        known: dict[str, str] = {member: url for member, url, _ in _MEMBER.findall(body)}
        known |= {alias: known[target] for alias, target in _ALIAS.findall(body) if target in known}
        if url := known.get(name.removeprefix(f"{kind}.")):
            return url
        if known:
            names = ", ".join(known)
            raise UsageError(f"--weights is {name!r}: torchvision has {names} for {backbone}; or give a file, or none.")
    raise UsageError(f"--backbone is {backbone!r}, for which torchvision has no weights: name a file.")


def eval_crop(backbone: str, weights: str) -> float:
    """The share of the short side that the centre crop kept when weights were tested, by the value of `--weights`.

    A file is known by its name. `EVAL_CROP` if torchvision has none of this name.
    """
    source = weights.partition("#")[0]
    if re.fullmatch(WEIGHTS_NAME, source):
        with suppress(UsageError):  # a wrong name is reported where the weights are loaded
            source = weights_url(backbone, source)
    return _crops().get(public_uri(source).rpartition("/")[2], EVAL_CROP)


@cache
def _crops() -> dict[str, float]:
    return dict(_crop_of_each())


def _crop_of_each() -> Iterator[tuple[str, float]]:
    for text in _sources():
        for _, body in _CLASS.findall(text):
            for _, url, rest in _MEMBER.findall(body):
                sides = {"resize_size": _SIDE} | {name: int(side) for name, side in _SIDES.findall(rest)}
                if "crop_size" in sides:
                    yield url.rpartition("/")[2], round(sides["crop_size"] / sides["resize_size"], 4)


@cache
def _sources() -> list[str]:
    spec = importlib.util.find_spec("torchvision")
    folders = [*(spec.submodule_search_locations or ())] if spec else []
    return [path.read_text() for folder in folders for path in sorted(Path(folder, "models").glob("*.py"))]
