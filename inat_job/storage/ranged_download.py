"""Pulling one object to one file: in parallel ranges and resumable where the server can, in one stream where not."""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from inat_job.errors import BadDataError, PreconditionFailed, TransientError
from inat_job.events import Progress
from inat_job.signals import Stop, check, never
from inat_job.storage import partial_download
from inat_job.storage.base import UNKNOWN_SIZE, Entry, StorageOptions
from inat_job.storage.disk import disk_errors, publish, require_space
from inat_job.storage.partial_download import BlockLog, PartialDownload
from inat_job.storage.retry import PassingError, Patience, persist
from inat_job.storage.threads import work_through

R = TypeVar("R")

BLOCK = 256 * 1024
_CHANGES = 3


class Blocks(Protocol):
    """The bytes of `entry` from `start` up to `end` (None: to its end), in blocks.

    A generator; it raises PassingError for a body that broke, PreconditionFailed for an object that changed.
    """

    def __call__(self, entry: Entry, start: int, end: int | None, /) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class RangeSource:
    """An object to pull: its name for messages, how to look at it (entry, has ranges?) and how to read it."""

    name: str
    look: Callable[[], tuple[Entry, bool]]
    blocks: Blocks


def pull(
    source: RangeSource,
    path: Path,
    options: StorageOptions,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    stop: Stop = never,
    landing: PartialDownload | None = None,
) -> Entry:
    """Bring the object to `path` and return its entry, starting over when it changes meanwhile.

    `landing` is told what is there meanwhile. Raises BadDataError for another sha256, Preempted when `stop` turns true;
    what came so far is kept for next time.
    """
    for _ in range(_CHANGES):
        check(stop, f"fetching {source.name}")
        entry, ranged = _attended(lambda _: source.look(), lambda: check(stop, f"looking for {source.name}"))
        work = _Pull(source, entry, path, options, progress, stop, landing or PartialDownload())
        try:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                size = work.in_ranges() if ranged else work.in_one_stream()
                work.accept(sha256)
        except PreconditionFailed:
            continue
        return Entry(entry.key, size, entry.version)
    raise TransientError(f"{source.name} changed {_CHANGES} times while it was fetched: try again when it is at rest.")


def _attended(work: Callable[[Stop], R], tick: Callable[[], None]) -> R:
    """`work(halt)`, done by a thread so that a stalled server doesn't keep this one from reading the stop flag."""
    ((_, result),) = work_through([None], lambda _, halt: work(halt), threads=1, tick=tick)
    return result


class _Pull:
    def __init__(
        self,
        source: RangeSource,
        entry: Entry,
        path: Path,
        options: StorageOptions,
        progress: Progress | None,
        stop: Stop,
        landing: PartialDownload,
    ) -> None:
        self.source, self.entry, self.path, self.options, self.stop = source, entry, path, options, stop
        self.progress, self.landing = progress, landing
        self.part = path.with_name(path.name + ".part")
        self.received = 0

    def in_ranges(self) -> int:
        """Pull what the journal misses, chunk by chunk, on several threads."""
        journal = partial_download.resume(
            self.part, self.entry.version, self.entry.size, lambda: check(self.stop, f"verifying {self.source.name}")
        )
        self.received = journal.bytes_done()
        require_space(self.path, self.entry.size - self.received)
        missing = journal.missing()
        self.landing.begin(self.part, journal)

        def fetch(_: int, halt: Stop) -> None:
            self._chunk(log, self.landing.take(missing), halt)

        with partial_download.journal_path(self.part).open("a") as file:
            log = BlockLog(journal, file)
            for _ in work_through(range(len(missing)), fetch, threads=self.options.threads, tick=self._tick):
                pass
        self.landing.finish()
        return self.entry.size

    def _chunk(self, log: BlockLog, index: int, halt: Stop) -> None:
        """Pull what is missing of one chunk, going on after a broken body where it broke."""
        start, end = log.journal.plan.span(index)
        there, crc = log.journal.reached.get(index, (0, 0))
        at, patience = start + there, Patience(self.options.retries, halt)
        with self.part.open("r+b") as file:
            file.seek(at)
            while at < end:
                began = at
                try:
                    for block in self._blocks(at, end, halt):
                        file.write(block)
                        file.flush()
                        crc = zlib.crc32(block, crc)
                        at += len(block)
                        log.note(index, at - start, crc)
                        self.landing.advance()
                except PassingError as error:
                    patience.spend(error, progressed=at > began)

    def _blocks(self, start: int, end: int | None, halt: Stop) -> Iterator[bytes]:
        """The source's blocks, counted; exactly those of the range, however long the server's answer is."""
        at = start
        with closing(self.source.blocks(self.entry, start, end)) as blocks:  # type: ignore[type-var]  # generators
            for block in blocks:
                check(halt, f"fetching {self.source.name}")
                fitting = block if end is None else block[: end - at]
                at += len(fitting)
                self.received += len(fitting)  # only shown: a lost update among threads does no harm
                yield fitting
        if end is not None and at < end:
            raise PassingError(f"{self.source.name} ended {end - at} bytes early: try again.")

    def in_one_stream(self) -> int:
        """Pull a whole object of a server without ranges; a broken body starts over."""
        self.landing.lose()
        partial_download.journal_path(self.part).unlink(missing_ok=True)
        return _attended(lambda halt: persist(lambda: self._stream(halt), self.options.retries, halt), self._tick)

    def _stream(self, halt: Stop) -> int:
        self.received = 0
        end = None if self.entry.size == UNKNOWN_SIZE else self.entry.size
        with self.part.open("wb") as file:
            for block in self._blocks(0, end, halt):
                file.write(block)
        return self.received

    def _tick(self) -> None:
        check(self.stop, f"fetching {self.source.name}")
        if self.progress is not None and self.entry.size != UNKNOWN_SIZE:
            self.progress(min(self.received, self.entry.size), self.entry.size)

    def accept(self, sha256: str | None) -> None:
        """Believe the part, if it hashes to `sha256`, and publish it."""
        if sha256 is not None and (found := self._sha256()) != sha256.lower():
            self._discard()
            raise BadDataError(
                f"{self.source.name} has sha256 {found}, not {sha256}: it changed or is damaged; "
                f"if it is what you want, say #sha256={found}."
            )
        publish(self.part, self.path)
        partial_download.journal_path(self.part).unlink(missing_ok=True)

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        with self.part.open("rb") as file:
            while block := file.read(BLOCK):
                check(self.stop, f"verifying {self.source.name}")
                digest.update(block)
        return digest.hexdigest()

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        partial_download.journal_path(self.part).unlink(missing_ok=True)
