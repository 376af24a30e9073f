"""Builds the decoded cache: every picture read, hashed, decoded and squashed once, then published by one rename."""

import hashlib
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from inat_job.data import layout
from inat_job.data.decoding import ROWS, Decoded, decode_all
from inat_job.data.index import FORMAT, PIXELS, Cache, Index, load
from inat_job.data.layout import Picture
from inat_job.data.locks import cache_errors, lock
from inat_job.data.pull import Source
from inat_job.errors import BadDataError, ConflictError
from inat_job.signals import Stop
from inat_job.storage.hashing import sha256_of

MARGIN = 1.15
"""Cache side over the network's input, so that a random crop rarely enlarges."""

_WAITING = "waiting for another job that prepares the same pictures"


def cache_side(image_size: int) -> int:
    """Side of the cached squares for an input of `image_size` pixels, a multiple of eight."""
    return max(8 * round(MARGIN * image_size / 8), image_size)


def prepare(source: Source, cache_dir: Path, image_size: int, max_broken: float, stop: Stop) -> Cache:
    """The cache of a source at this geometry, built if it is not there.

    Any number of jobs may ask at once: one builds, the others wait and find it. Raises BadDataError for a data set
    that is unusable or more than `max_broken` unreadable, ConflictError when the cache folder is too small
    or cannot be written, Preempted.
    """
    side = cache_side(image_size)
    key = hashlib.sha256(f"{source.identity} {side} {FORMAT}".encode()).hexdigest()[:24]
    folder = cache_dir / "prepared" / key
    cache = load(folder)
    if cache is None:
        with lock(folder.with_suffix(".lock"), cache_dir, stop, _WAITING), cache_errors(cache_dir):
            cache = load(folder) or _build(source, folder, side, max_broken, stop)
    # The same pictures may have been prepared from elsewhere; what is said of them names where this run has them from.
    cache = replace(cache, index=replace(cache.index, source=source.uri))
    _judge(cache.index, max_broken)
    source.verify(cache.index.digest)
    return cache


def _build(source: Source, folder: Path, side: int, max_broken: float, stop: Stop) -> Cache:
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(folder, ignore_errors=True)  # a cache that failed its check
    container = source.open()
    pictures = layout.find(container.names(), source.uri)
    unfinished.mkdir(exist_ok=True)
    _check_disk(unfinished, len(pictures) * side * side * 3)
    decoded = decode_all(container, pictures, unfinished, side, stop)
    index = _index(source, pictures, decoded, side, unfinished / PIXELS)
    try:
        _judge(index, max_broken)
    except BadDataError:
        shutil.rmtree(unfinished)  # gigabytes that nobody may ever ask for again
        raise
    index.save(unfinished)
    (unfinished / ROWS).unlink()
    unfinished.replace(folder)
    return Cache(folder, index)


def _index(source: Source, pictures: Sequence[Picture], decoded: Sequence[Decoded], side: int, path: Path) -> Index:
    kept = [row for row, each in enumerate(decoded) if each.reason is None]
    _close_gaps(path, kept, len(pictures), side)
    classes = layout.classes(pictures)
    number = {name: label for label, name in enumerate(classes)}
    hashes = tuple(decoded[row].sha256 for row in kept)
    ids = tuple(pictures[row].id for row in kept)
    return Index(
        source=source.uri,
        digest=source.digest or _content_digest(ids, hashes),
        side=side,
        classes=classes,
        ids=ids,
        labels=tuple(number[pictures[row].label] for row in kept),
        splits=tuple(pictures[row].split for row in kept),
        sizes=tuple(decoded[row].size for row in kept),
        hashes=hashes,
        rejected=tuple(
            {"id": picture.id, "reason": each.reason}
            for picture, each in zip(pictures, decoded, strict=True)
            if each.reason is not None
        ),
        pixels_sha256=sha256_of(path),
    )


def _content_digest(ids: Sequence[str], hashes: Sequence[str]) -> str:
    lines = (f"{name} {content}\n" for name, content in zip(ids, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _close_gaps(path: Path, kept: Sequence[int], rows: int, side: int) -> None:
    if len(kept) == rows:
        return
    pixels = np.memmap(path, dtype=np.uint8, mode="r+", shape=(rows, side, side, 3))
    for row, old in enumerate(kept):
        pixels[row] = pixels[old]
    pixels.flush()
    os.truncate(path, len(kept) * side * side * 3)


def _judge(index: Index, max_broken: float) -> None:
    """Raise BadDataError if too many pictures were rejected or a class has none left in a split."""
    total = len(index.ids) + len(index.rejected)
    if len(index.rejected) > math.floor(max_broken * total):
        first = index.rejected[0]
        raise BadDataError(
            f"{len(index.rejected)} of {total} pictures of {index.source} cannot be read, first {first['id']} "
            f"({first['reason']}): mend them, or raise --max-broken, which is {max_broken:g}."
        )
    present = set(zip(index.splits, index.labels, strict=True))
    for split in (layout.TRAIN, layout.TEST):
        for label, name in enumerate(index.classes):
            if (split, label) not in present:
                raise BadDataError(f"{index.source} has no readable picture of class {name} in {split}.")


def _check_disk(unfinished: Path, size: int) -> None:
    """Raise ConflictError where the pixels don't fit beside what is there of them already."""
    pixels = unfinished / PIXELS
    need = size - (512 * pixels.stat().st_blocks if pixels.exists() else 0)
    free = shutil.disk_usage(unfinished).free
    if need > free:
        raise ConflictError(
            f"--cache-dir {unfinished.parents[1]} has {free / 1e6:,.0f} MB free, "
            f"and the decoded pictures need {need / 1e6:,.0f} MB: free some, or name another folder."
        )
