"""From the words of `--data` to a prepared cache, against a plain download."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from inat_job.bench import downloads
from inat_job.bench.measured import Measured
from inat_job.bench.timing import by_turns, rates
from inat_job.data import prepare
from inat_job.data.pull import find
from inat_job.signals import Stop
from inat_job.storage import StorageOptions, open_store, split_uri
from inat_job.storage.base import UNKNOWN_SIZE
from inat_job.storage.local import LocalStore


@dataclass(frozen=True)
class Where:
    """An archive as `--data` names it, and how stores are reached."""

    uri: str
    options: StorageOptions


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
