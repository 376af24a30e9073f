"""The decoded cache as it lies on disk: one memory-mapped file of pixels and an index that says what they are."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from inat_job.data import pixel_file
from inat_job.data.layout import TEST, TRAIN
from inat_job.signals import Stop, never
from inat_job.storage.cache_locks import FolderHold, hold_folder

FORMAT = 3
PIXELS, INDEX = "pixels.u8", "index.json"


@dataclass(frozen=True)
class Index:
    """What the rows of the pixel file are; every list has one item a row, sorted by id."""

    source: str
    digest: str
    side: int
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    splits: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    hashes: tuple[str, ...]
    rejected: tuple[dict[str, str], ...]
    pixels_sha256: str
    format: int = FORMAT

    def in_both_splits(self) -> tuple[str, ...]:
        """Ids of test images whose very bytes also stand in train."""
        train = {content for content, split in zip(self.hashes, self.splits, strict=True) if split == TRAIN}
        rows = zip(self.ids, self.hashes, self.splits, strict=True)
        return tuple(name for name, content, split in rows if split == TEST and content in train)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, int64."""
        return np.flatnonzero(np.array(self.splits) == split)

    def save(self, folder: Path) -> None:
        """Write the index beside the pixels, with a hash: a flipped digit would be another label."""
        fields = dataclasses.asdict(self)
        (folder / INDEX).write_text(json.dumps({"sha256": _digest(fields), "index": fields}), encoding="utf-8")


@dataclass(frozen=True)
class Cache:
    """A published cache folder; nothing in it ever changes, and as long as it is `held` nobody deletes it."""

    folder: Path
    index: Index
    held: FolderHold | None = field(default=None, repr=False, compare=False)

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 RGB of shape (rows, side, side, 3), memory-mapped, read only."""
        shape = (len(self.index.ids), self.index.side, self.index.side, 3)
        return np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r", shape=shape)


def load(folder: Path, stop: Stop = never) -> Cache | None:
    """The cache in a folder, or None if there is none that is whole: hash, size and format are checked.

    Raises Preempted.
    """
    held = hold_folder(folder)
    cache = checked(folder)
    try:
        whole = cache and _is_whole(folder / PIXELS, cache.index, stop)
    except (OSError, ValueError):
        return None
    return Cache(folder, cache.index, held) if cache and whole and held else None


def checked(folder: Path) -> Cache | None:
    """The same, where another process of this job holds it and has just seen that the pixels are whole."""
    try:
        stored = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        fields: dict[str, Any] = stored["index"]
        if stored["sha256"] != _digest(fields) or fields["format"] != FORMAT:
            return None
        return Cache(folder, Index(**{name: _frozen(value) for name, value in fields.items()}))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None


def _is_whole(path: Path, index: Index, stop: Stop) -> bool:
    with pixel_file.existing(path, len(index.ids), index.side) as pixels:
        return path.stat().st_size == pixels.nbytes and pixels.digest(stop) == index.pixels_sha256


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
