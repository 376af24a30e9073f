"""The decoded cache on disk: one memory-mapped file of pixels, and the index that describes its rows."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from inat_job.data import pixel_file
from inat_job.data.layout import TEST, TRAIN, VALIDATION
from inat_job.signals import Stop, never
from inat_job.storage.cache_locks import FolderHold, hold_folder
from inat_job.storage.disk import read_json_object

FORMAT = 6
PIXELS, INDEX = "pixels.u8", "index.json"
_HIDDEN, _NO_LABEL = "hidden", -1
HIDDEN_FROM_TRIALS = "A trial of a sweep may not read test images."


@dataclass(frozen=True)
class CacheIndex:
    """The rows of the pixel file, sorted by id: the tuples from `ids` to `hashes` have one item per row.

    `digest` is that of the source, `side` the side of the squares in pixels, `sizes` are original widths and heights,
    `hashes` the SHA-256 of the image files. `rejected` has the id and the reason of each unreadable image, `skipped`
    the name and the reason of each other file that is not used, `blank` the ids of images of (nearly) one colour.
    `test_share` is the share of test images where the job split them off, None if the data set has its own.
    """

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
    skipped: tuple[dict[str, str], ...] = ()
    blank: tuple[str, ...] = ()
    format: int = FORMAT
    test_share: float | None = None

    def in_both_splits(self, split: str = TEST) -> tuple[str, ...]:
        """Ids of the images of a split whose file is also a training image, or of test ones, a validation image.

        Validation images choose the checkpoint, and `--final` trains on them.
        """
        earlier = (TRAIN, VALIDATION) if split == TEST else (TRAIN,)
        seen = {content for content, its in zip(self.hashes, self.splits, strict=True) if its in earlier}
        rows = zip(self.ids, self.hashes, self.splits, strict=True)
        return tuple(name for name, content, its in rows if its == split and content in seen)

    def without_test(self) -> "CacheIndex":
        """The index without test images: of their rows it has no name, no label and no hash."""
        hidden = [split == TEST for split in self.splits]
        named = {name for name, out in zip(self.ids, hidden, strict=True) if out}
        return dataclasses.replace(
            self,
            ids=_blanked(self.ids, hidden, ""),  # which contains the class
            labels=_blanked(self.labels, hidden, _NO_LABEL),
            splits=_blanked(self.splits, hidden, _HIDDEN),
            hashes=_blanked(self.hashes, hidden, ""),
            blank=tuple(name for name in self.blank if name not in named),
        )

    def hidden_rows(self) -> np.ndarray:
        """Row numbers of the images that `without_test` removed, int64."""
        return self.rows(_HIDDEN)

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, int64."""
        return np.flatnonzero(np.array(self.splits) == split)

    def save(self, folder: Path) -> None:
        """Write the index beside the pixels, with a hash: a flipped digit would be another label. Raises OSError."""
        fields = dataclasses.asdict(self)
        if self.test_share is None:  # as earlier versions wrote it
            del fields["test_share"]
        (folder / INDEX).write_text(json.dumps({"sha256": _digest(fields), "index": fields}), encoding="utf-8")


@dataclass(frozen=True)
class Cache:
    """A published cache folder; its files never change, and no job deletes it while it is `held`."""

    folder: Path
    index: CacheIndex
    held: FolderHold | None = field(default=None, repr=False, compare=False)

    def without_test(self) -> "Cache":
        """The same cache for a trial of a sweep, which chooses settings and must not see the test images."""
        return dataclasses.replace(self, index=self.index.without_test())

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 RGB of shape (rows, side, side, 3), memory-mapped, read only.

        Raises LookupError in a trial of a sweep.
        """
        if len(self.index.hidden_rows()):
            raise LookupError(HIDDEN_FROM_TRIALS)
        shape = (len(self.index.ids), self.index.side, self.index.side, 3)
        return np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r", shape=shape)


def load(folder: Path, stop: Stop = never) -> Cache | None:
    """The cache in a folder, held, or None unless it is intact: format, size and hashes are checked.

    Raises Preempted.
    """
    held = hold_folder(folder)
    cache = load_trusted(folder)
    try:
        intact = cache and _pixels_are_intact(folder / PIXELS, cache.index, stop)
    except (OSError, ValueError):
        return None
    return Cache(folder, cache.index, held) if cache and intact and held else None


def load_trusted(folder: Path) -> Cache | None:
    """The cache in a folder that another process of this job holds and has just checked; only the index is checked."""
    try:
        stored = read_json_object(folder / INDEX)
        fields: dict[str, Any] = stored["index"]
        if stored["sha256"] != _digest(fields) or fields["format"] != FORMAT:
            return None
        return Cache(folder, CacheIndex(**{name: _as_tuples(value) for name, value in fields.items()}))
    except (ValueError, TypeError, LookupError, RecursionError):
        return None


def _pixels_are_intact(path: Path, index: CacheIndex, stop: Stop) -> bool:
    with pixel_file.open_existing(path, len(index.ids), index.side) as pixels:
        return path.stat().st_size == pixels.nbytes and pixels.digest(stop) == index.pixels_sha256


def _blanked(values: tuple[Any, ...], hidden: Sequence[bool], blank: Any) -> tuple[Any, ...]:
    return tuple(blank if out else value for value, out in zip(values, hidden, strict=True))


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
