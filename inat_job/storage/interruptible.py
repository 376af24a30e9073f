"""A store whose requests are given up when the job is to stop, however long the server keeps silent."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from inat_job import signals
from inat_job.events import Progress
from inat_job.signals import Stop, never
from inat_job.storage.base import Entry, Store
from inat_job.storage.partial_download import PartialDownload
from inat_job.storage.threads import work_through

R = TypeVar("R")


class Interruptible:
    """`store`, each request made by a thread of its own while this one reads `stop`.

    Every verb raises Preempted when `stop` turns true; what the server does with a request under way is then unknown,
    as when the job is killed.
    """

    def __init__(self, store: Store, stop: Stop) -> None:
        self._store, self._stop = store, stop
        self.uri = store.uri

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        yield from self._attend(lambda: list(self._store.list(prefix, most)))

    def stat(self, key: str) -> Entry | None:
        return self._attend(lambda: self._store.stat(key))

    def read(self, key: str) -> bytes:
        return self._attend(lambda: self._store.read(key))

    def part(self, entry: Entry, start: int, end: int) -> bytes | None:
        return self._attend(lambda: self._store.part(entry, start, end))

    def get(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
        stop: Stop = never,
        landing: PartialDownload | None = None,
    ) -> Entry:
        return self._store.get(
            key, path, sha256=sha256, progress=progress, stop=lambda: stop() or self._stop(), landing=landing
        )

    def put(
        self,
        key: str,
        source: Path | bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        progress: Progress | None = None,
    ) -> Entry:
        return self._attend(
            lambda: self._store.put(key, source, if_none_match=if_none_match, if_match=if_match, progress=progress)
        )

    def delete(self, key: str) -> None:
        self._attend(lambda: self._store.delete(key))

    def _attend(self, request: Callable[[], R]) -> R:
        def tick() -> None:
            signals.check(self._stop, f"{self.uri} was asked")

        ((_, result),) = work_through([None], lambda _, halt: request(), threads=1, tick=tick, patience_s=0.0)
        return result
