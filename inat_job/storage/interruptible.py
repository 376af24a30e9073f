"""A store whose requests are abandoned when the job is to stop, however long the server takes to answer."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar, Unpack

from inat_job import signals
from inat_job.signals import Stop, never
from inat_job.storage.base import Conditions, Entry, Store, Transfer
from inat_job.storage.local import LocalStore
from inat_job.storage.threads import run_in_thread

R = TypeVar("R")


def interruptible(store: Store, stop: Stop) -> Store:
    """`store` itself if it is a folder of this machine, or else wrapped so that its requests end at `stop`."""
    return store if isinstance(store, LocalStore) else InterruptibleStore(store, stop)


class InterruptibleStore:
    """Wraps `store`: each request runs in a thread of its own while the calling thread checks `stop`.

    Every verb raises Preempted when `stop` turns true. The outcome of the abandoned request is then unknown, as after a
    kill.
    """

    def __init__(self, store: Store, stop: Stop) -> None:
        self._store, self._stop = store, stop
        self.uri = store.uri

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        yield from self._run(lambda: list(self._store.list(prefix, most)))

    def stat(self, key: str) -> Entry | None:
        return self._run(lambda: self._store.stat(key))

    def read(self, key: str) -> bytes:
        return self._run(lambda: self._store.read(key))

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        return self._run(lambda: self._store.read_range(entry, start, end))

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        asked = transfer.get("stop", never)
        transfer["stop"] = lambda: asked() or self._stop()
        return self._store.get(key, path, **transfer)

    def put(self, key: str, source: Path | bytes, **conditions: Unpack[Conditions]) -> Entry:
        return self._run(lambda: self._store.put(key, source, **conditions))

    def delete(self, key: str) -> None:
        self._run(lambda: self._store.delete(key))

    def delete_drafts(self, selected: Callable[[str], bool]) -> None:
        self._run(lambda: self._store.delete_drafts(selected))

    def _run(self, request: Callable[[], R]) -> R:
        tick = partial(signals.check, self._stop, f"waiting for {self.uri}")
        return run_in_thread(lambda _: request(), tick, join_s=0.0)
