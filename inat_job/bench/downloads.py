"""A download as plain as can be: ranges of a web address by a few threads, or one stream, and no look at the bytes."""

import os
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Protocol, runtime_checkable

from inat_job.storage import Entry, Store
from inat_job.storage.local import LocalStore

THREADS = 8
RANGE = 2**23
_BLOCK = 2**20


@runtime_checkable
class Addressed(Protocol):
    """A store whose objects have web addresses."""

    def address(self, key: str) -> str:
        """Where anybody can read the object."""


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
