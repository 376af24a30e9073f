"""Downloads one object to one file: in parallel, resumable ranges if the server supports them, else in one stream."""

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from inat_job import events
from inat_job.errors import BadDataError, PreconditionFailed, TransientError
from inat_job.events import Progress
from inat_job.signals import Stop, check, never
from inat_job.storage import partial_download
from inat_job.storage.base import UNKNOWN_SIZE, Entry, StorageOptions
from inat_job.storage.checksums import Checksum
from inat_job.storage.disk import disk_errors, open_unlinked, publish, read_blocks, require_space, sha256_of
from inat_job.storage.partial_download import JournalWriter, PartialDownload
from inat_job.storage.retry import Retries, RetryableError, with_retries
from inat_job.storage.threads import map_in_threads, run_in_thread

BLOCK_SIZE = 256 * 1024
_VERSIONS = 3
"""Versions of an object that are tried before a download gives up on one that keeps changing."""


ReadBlocks = Callable[[Entry, int, int | None], Iterator[bytes]]
"""A generator of the bytes of an object from a start up to an end (None: to its end) in blocks.

It raises RetryableError for a broken body, PreconditionFailed for an object that changed.
"""


def require_range(name: str, status: int, content_range: str, span: tuple[int, int, int]) -> None:
    """Raise RetryableError unless an answer is the `span` asked for: start, end, and size of the object.

    A proxy or a captive page may answer with a page of its own, with the whole object, or with another range.
    """
    start, end, size = span
    if status == 206 and re.fullmatch(rf"bytes {start}-{end - 1}/({size}|\*)", content_range.strip(), re.IGNORECASE):
        return
    found = f"HTTP {status}, {content_range[:50] or 'no Content-Range'}"
    raise RetryableError(
        f"{name}: the answer is not bytes {start} to {end - 1} of {size} ({found})",
        "check for a proxy or a login page on the way, or try again later",
    )


def verified(read: Callable[[], tuple[bytes, Checksum | None]], name: str) -> bytes:
    """A small object, which `read` returns with the checksum that its store states. Raises RetryableError."""
    data, checksum = read()
    if checksum is None or checksum.matches([data]) or (not checksum.is_certain and read()[0] == data):
        return data
    raise RetryableError(f"{name} arrived damaged", "check the network, and try again")


@dataclass(frozen=True)
class RangeSource:
    """An object to download: its name for messages, how to stat it (entry, supports ranges?, what its store states of
    its bytes) and how to read it.
    """

    name: str
    stat: Callable[[], tuple[Entry, bool, Checksum | None]]
    blocks: ReadBlocks


def download(
    source: RangeSource,
    path: Path,
    options: StorageOptions,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    stop: Stop = never,
    incoming: PartialDownload | None = None,
) -> Entry:
    """Download the object to `path` and return its entry, starting over if it changes meanwhile.

    `incoming` receives the bytes as they arrive. Without a `sha256`, the bytes must have the checksum that the store
    states. Raises BadDataError for another sha256 or for damage in the store, Preempted when `stop` turns true, and
    TransientError for an object that keeps changing or arrives damaged; what has arrived intact is kept for the next
    attempt.
    """
    damaged: list[str] = []
    for _ in range(_VERSIONS):
        check(stop, f"downloading {source.name}")
        entry, ranged, checksum = run_in_thread(
            lambda _: source.stat(), lambda: check(stop, f"looking up {source.name}")
        )
        proven = sha256 is not None or checksum is not None
        work = _Download(source, entry, path, options, progress, stop, incoming or PartialDownload(), proven)
        try:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                size = work.in_ranges() if ranged else work.in_one_stream()
                if sha256 is None and checksum is not None and not work.is_proven(checksum, damaged):
                    continue
                work.accept(sha256)
        except PreconditionFailed:
            continue
        return Entry(entry.key, size, entry.version)
    if len(set(damaged)) < len(damaged):
        raise BadDataError(f"{source.name} does not have the checksum that its store states: upload it again.")
    if damaged:
        raise TransientError(f"{source.name} arrived damaged {len(damaged)} times: check the network, and try again.")
    raise TransientError(f"{source.name} changed {_VERSIONS} times during its download: try again once it is stable.")


@dataclass
class _Download:
    source: RangeSource
    entry: Entry
    path: Path
    options: StorageOptions
    progress: Progress | None
    stop: Stop
    incoming: PartialDownload
    is_proven_later: bool
    received: int = 0

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    def in_ranges(self) -> int:
        """Download the chunks that the journal misses, on several threads."""
        if not self.part.exists():  # or else resume would make a file of this size
            require_space(self.path, self.entry.size)
        journal = partial_download.resume(self.part, self.entry.version, self.entry.size, self._verifying)
        self.received = journal.bytes_done()
        require_space(self.path, self.entry.size - self.received)
        missing = journal.missing()
        self.incoming.begin(self.part, journal, self._reread, self.is_proven_later)

        def fetch(_: int, halt: Stop) -> None:
            self._chunk(writer, self.incoming.take(missing), halt)

        with open_unlinked(partial_download.journal_path(self.part), "a") as file:
            writer = JournalWriter(journal, file)
            for _ in map_in_threads(range(len(missing)), fetch, threads=self.options.threads, tick=self._tick):
                pass
        self.incoming.finish()
        return self.entry.size

    def _reread(self, start: int, end: int) -> bytes:
        read = lambda: b"".join(self.source.blocks(self.entry, start, end))  # noqa: E731
        retries, name = self.options.retries, self.source.name
        return run_in_thread(
            lambda halt: with_retries(read, retries, name, halt), lambda: check(self.stop, f"downloading {name}")
        )

    def _chunk(self, writer: JournalWriter, index: int, halt: Stop) -> None:
        """Download the missing bytes of one chunk; a broken body is continued where it broke."""
        start, end = writer.journal.plan.span(index)
        received, crc = writer.journal.received.get(index, (0, 0))
        at, retries = start + received, Retries(self.options.retries, self.source.name, halt)
        with open_unlinked(self.part, "r+b") as file:
            file.seek(at)
            while at < end:
                began = at
                try:
                    for block in self._blocks(at, end, halt):
                        file.write(block)
                        file.flush()
                        crc = zlib.crc32(block, crc)
                        at += len(block)
                        writer.record(index, at - start, crc)
                        self.incoming.advance()
                except RetryableError as error:
                    retries.wait(error, progressed=at > began)

    def _blocks(self, start: int, end: int | None, halt: Stop) -> Iterator[bytes]:
        """The source's blocks, counted, and cut to the range if the server sends more."""
        at = start
        with closing(self.source.blocks(self.entry, start, end)) as blocks:  # type: ignore[type-var]  # generators
            for block in blocks:
                check(halt, f"downloading {self.source.name}")
                wanted = block if end is None else block[: end - at]
                at += len(wanted)
                self.received += len(wanted)  # for display only: a lost update between threads does no harm
                yield wanted
        if end is not None and at < end:
            raise RetryableError(f"{self.source.name} ended {end - at} bytes early")

    def in_one_stream(self) -> int:
        """Download a whole object from a server without ranges; a broken body starts over."""
        self.incoming.fail()
        partial_download.journal_path(self.part).unlink(missing_ok=True)
        return run_in_thread(
            lambda halt: with_retries(lambda: self._stream(halt), self.options.retries, self.source.name, halt),
            self._tick,
        )

    def _stream(self, halt: Stop) -> int:
        self.received = 0
        with open_unlinked(self.part, "wb") as file:
            for block in self._blocks(0, None, halt):
                file.write(block)
        if self.entry.size not in (UNKNOWN_SIZE, self.received):
            raise RetryableError(f"{self.source.name} has {self.received} bytes, not {self.entry.size}")
        return self.received

    def _tick(self) -> None:
        check(self.stop, f"downloading {self.source.name}")
        if self.progress is not None and self.entry.size != UNKNOWN_SIZE:
            self.progress(min(self.received, self.entry.size), self.entry.size)

    def is_proven(self, checksum: Checksum, damaged: list[str]) -> bool:
        """Whether the file has this checksum; if not, it is discarded and its SHA-256 is added to `damaged`.

        What may be no checksum at all, such as an ETag, is overruled by two downloads of the same bytes.
        """
        if checksum.matches(read_blocks(self.part), self._verifying):
            return True
        found = sha256_of(self.part, self._verifying)
        if not checksum.is_certain and found in damaged:
            events.warn(
                f"{self.source.name} came twice with the same bytes, and its ETag is not their checksum: "
                f"to be certain of them, use #sha256={found}."
            )
            return True
        self._discard()
        damaged.append(found)
        return False

    def _verifying(self) -> None:
        check(self.stop, f"verifying {self.source.name}")

    def accept(self, sha256: str | None) -> None:
        """Publish the file if it has this `sha256`, or discard it."""
        if sha256 is not None and (found := sha256_of(self.part, self._verifying)) != sha256.lower():
            self._discard()
            raise BadDataError(
                f"{self.source.name} has sha256 {found}, not {sha256}: it changed or is damaged; "
                f"if it is the file you want, use #sha256={found}."
            )
        publish(self.part, self.path)
        partial_download.journal_path(self.part).unlink(missing_ok=True)

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        partial_download.journal_path(self.part).unlink(missing_ok=True)
