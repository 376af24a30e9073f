"""From the words of `--data` to a prepared cache: against a plain download, and against decoding and nothing else."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inat_job.bench import children, downloads
from inat_job.bench.measured import PICTURES, Measured
from inat_job.bench.timing import by_turns, rates
from inat_job.data import layout, prepare
from inat_job.data.archives import open_archive
from inat_job.data.pull import Source, find
from inat_job.platforms import processors
from inat_job.signals import Stop
from inat_job.storage import StorageOptions, open_store, split_uri
from inat_job.storage.base import UNKNOWN_SIZE
from inat_job.storage.local import LocalStore


@dataclass(frozen=True)
class Where:
    """An archive as `--data` names it, and how stores are reached."""

    uri: str
    options: StorageOptions


def decode(source: Source, archive: Path, image_size: int, scratch: Path, runs: int, stop: Stop) -> list[Measured]:
    """Preparing an archive on this machine, against bare processes on all cores; hashing and writing by themselves."""
    pictures = layout.find(open_archive(archive).names(), source.uri)
    side = prepare.cache_side(image_size)

    def prepared() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            prepare.prepare(source, Path(folder), image_size, 1.0, stop)

    with _bare(archive, side) as decoded:
        took = by_turns({"prepare": prepared, "bare": decoded}, runs, least_s=0)
    values, limits = (rates(len(pictures), took[name]) for name in ("prepare", "bare"))
    found = [Measured("prepare", PICTURES, values, "bare processes that decode", limits)]
    return found + _apart(archive, len(pictures), side, scratch, runs)


@contextmanager
def _bare(archive: Path, side: int) -> Iterator[Callable[[], None]]:
    """A function that decodes every picture once on all cores, and waits for it."""
    cores = processors.available()
    with ExitStack() as stack:
        crew = []
        for first in range(cores):
            words = (str(archive.absolute()), str(side), str(first), str(cores))
            crew.append(stack.enter_context(children.asked(children.module("bare", *words))))
        for child in crew:
            child.hear()

        def go() -> None:
            for child in crew:
                child.say()
            for child in crew:
                child.hear()

        yield go


def _apart(archive: Path, count: int, side: int, scratch: Path, runs: int) -> list[Measured]:
    """Hashing what is read and what is written, on one core, and writing it durably."""
    block = np.random.default_rng(0).integers(0, 256, 2**22, dtype=np.uint8).tobytes()
    read, written = archive.stat().st_size, count * side * side * 3
    path = scratch / "written"

    def hashing() -> None:
        digest = hashlib.sha256()
        for _ in range((read + written) // len(block) + 1):
            digest.update(block)

    def writing() -> None:
        with path.open("wb") as file:
            for _ in range(written // len(block) + 1):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    took = by_turns({"hash": hashing, "write": writing}, runs, least_s=0)
    path.unlink()
    return [
        Measured("hashing in prepare", PICTURES, rates(count, took["hash"]), note="by itself, on one core"),
        Measured("writing in prepare", PICTURES, rates(count, took["write"]), note="by itself, until durable"),
    ]


def pull(where: Where, image_size: int, scratch: Path, runs: int, stop: Stop) -> list[Measured]:
    """Fetching the archive, and all the way to a prepared cache, against a plain download of which nothing is kept."""
    parent, key = split_uri(where.uri.partition("#")[0])
    store = open_store(parent, where.options)
    entry = store.stat(key)
    if entry is None or entry.size == UNKNOWN_SIZE:
        return []

    def fetched() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            store.get(entry.key, Path(folder) / "archive", stop=stop)

    def arrived() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            source = find(where.uri, Path(folder), where.options, stop)
            prepare.prepare(source, Path(folder), image_size, 1.0, stop)

    works = {"pull": fetched, "both": arrived, "plain": lambda: downloads.plain(store, entry, scratch / "plain")}
    took = by_turns(works, runs, least_s=0)
    limit = rates(entry.size / 1e6, took["plain"])
    name = "plain read" if isinstance(store, LocalStore) else "plain ranged download"
    return [
        Measured("pull", "MB/s", rates(entry.size / 1e6, took["pull"]), name, limit),
        Measured("pull and prepare", "MB/s", rates(entry.size / 1e6, took["both"]), name, limit),
    ]
