"""From `--data` to a prepared cache, compared with a plain download."""

import os
import shutil
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from inat_job.bench.measurement import Measured, by_turns, rates
from inat_job.ingest import build_cache
from inat_job.ingest.data_source import find
from inat_job.signals import Stop
from inat_job.storage import Entry, StorageOptions, Store, open_store, split_uri
from inat_job.storage.base import UNKNOWN_SIZE
from inat_job.storage.local import LocalStore


@dataclass(frozen=True)
class PullTarget:
    """An archive as `--data` names it, and how stores are reached."""

    uri: str
    options: StorageOptions


def pull(where: PullTarget, image_size: int, scratch: Path, runs: int, stop: Stop) -> list[Measured]:
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
            build_cache.prepare(source, Path(folder), image_size, 1.0, stop)

    works = {"pull": fetched, "both": arrived, "plain": lambda: plain(store, entry, scratch / "plain")}
    took = by_turns(works, runs, least_s=0)
    limit = rates(entry.size / 1e6, took["plain"])
    name = "plain read" if isinstance(store, LocalStore) else "plain ranged download"
    return [
        Measured("pull", "MB/s", rates(entry.size / 1e6, took["pull"]), name, limit),
        Measured("pull and prepare", "MB/s", rates(entry.size / 1e6, took["both"]), name, limit),
    ]


THREADS = 8
RANGE = 2**23
_BLOCK = 2**20


@runtime_checkable
class Addressed(Protocol):
    """A store whose objects have web addresses."""

    def address(self, key: str) -> str:
        """PullTarget anybody can read the object."""


def plain(store: Store, entry: Entry, path: Path) -> None:
    """Bring an object to `path`, and delete it; a local one is read and written nowhere. Raises OSError."""
    if isinstance(store, LocalStore):
        with (store.root / entry.key).open("rb") as file:
            while file.read(_BLOCK):
                pass
        return
    assert isinstance(store, Addressed)
    address = store.address(entry.key)
    with path.open("wb") as file:
        if entry.version:
            _ranges(address, entry.size, file.fileno())
        else:
            with closing(urllib.request.urlopen(address)) as answer:  # noqa: S310
                shutil.copyfileobj(answer, file, _BLOCK)
    path.unlink()


def _ranges(address: str, size: int, file: int) -> None:
    def fetch(start: int) -> None:
        headers = {"Range": f"bytes={start}-{min(start + RANGE, size) - 1}"}
        with closing(urllib.request.urlopen(urllib.request.Request(address, headers=headers))) as answer:  # noqa: S310
            while block := answer.read(_BLOCK):
                os.pwrite(file, block, start)
                start += len(block)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, range(0, size, RANGE)))
