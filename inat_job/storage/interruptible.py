"""A store whose requests are abandoned when the job is to stop, however long the server takes to answer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from inat_job import signals
from inat_job.events import Progress
from inat_job.signals import Stop, never
from inat_job.storage.base import Entry, Store
from inat_job.storage.partial_download import PartialDownload
from inat_job.storage.threads import run_in_thread

R = TypeVar("R")


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

    def get(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
        stop: Stop = never,
        incoming: PartialDownload | None = None,
    ) -> Entry:
        return self._store.get(
            key, path, sha256=sha256, progress=progress, stop=lambda: stop() or self._stop(), incoming=incoming
        )

    def put(
        self,
        key: str,
        source: Path | bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> Entry:
        return self._run(
            lambda: self._store.put(
                key, source, if_none_match=if_none_match, if_match=if_match, sha256=sha256, progress=progress
            )
        )

    def delete(self, key: str) -> None:
        self._run(lambda: self._store.delete(key))

    def _run(self, request: Callable[[], R]) -> R:
        def tick() -> None:
            signals.check(self._stop, f"waiting for {self.uri}")

        return run_in_thread(lambda _: request(), tick, join_s=0.0)
