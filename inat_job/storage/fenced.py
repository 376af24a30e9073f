"""A store that a job writes to only while it holds the run: the fence around everything that a lease protects."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from inat_job.errors import JobError, Preempted, TransientError
from inat_job.storage.base import Conditions, Entry, Store, Transfer
from inat_job.storage.lease import LeaseError


class FencedStore:
    """Wraps `store`: `check`, which raises LeaseError once the lease is lost, comes before each object appears.

    The next holder deletes the drafts that it finds, so a put that was frozen after its check can only fail: no write
    of an earlier holder changes what a later one has stored. A lost lease is raised whatever error it led to.
    """

    def __init__(self, store: Store, check: Callable[[], None]) -> None:
        self._store, self._check = store, check
        self.uri = store.uri

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        return self._store.list(prefix, most)

    def stat(self, key: str) -> Entry | None:
        return self._store.stat(key)

    def read(self, key: str) -> bytes:
        return self._store.read(key)

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        return self._store.read_range(entry, start, end)

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        return self._store.get(key, path, **transfer)

    def put(self, key: str, source: Path | bytes, **conditions: Unpack[Conditions]) -> Entry:
        conditions["confirm"] = self._check
        with lost_lease_first(self._check):
            return self._store.put(key, source, **conditions)

    def delete(self, key: str) -> None:
        self._check()
        self._store.delete(key)

    def delete_drafts(self, selected: Callable[[str], bool]) -> None:
        self._store.delete_drafts(selected)


@contextmanager
def lost_lease_first(check: Callable[[], None]) -> Iterator[None]:
    """Raise LeaseError in place of an error of the block that the loss of the lease may have caused."""
    try:
        yield
    except (TransientError, Preempted):  # LeaseError is transient, and has the same code
        raise
    except Exception as error:
        try:
            check()
        except LeaseError:
            raise
        except JobError:  # the store does not say
            raise error from None
        raise
