"""A download in progress: its chunks, the journal that it resumes from, and reading it while it arrives.

The journal has one line for the object and one for each received block of a chunk, with the chunk's CRC-32. The CRC is
checked before a partial chunk is reused, so a power failure costs a chunk and never correctness.
"""

import io
import json
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from inat_job.errors import TransientError
from inat_job.storage.disk import open_unlinked, remove_link, write_atomic

MIB = 1024 * 1024
_CHUNKS = 64
_TICK_S = 0.1


class IncompleteDownloadError(TransientError):
    """The object cannot be read before its download ends: its server has no ranges, or the download started over."""


class PartialDownload:
    """The bytes of one object that have arrived so far.

    The download reports its progress and asks which chunk to fetch next; readers wait for the bytes they need, and
    raise IncompleteDownloadError as soon as these cannot arrive any more. `tick` runs in a waiting reader and may
    raise. Any number of threads may read.
    """

    def __init__(self, tick: Callable[[], None] = lambda: None) -> None:
        self._tick = tick
        self._changed = threading.Condition()
        self._journal: DownloadJournal | None = None
        self._path: Path | None = None
        self._file: IO[bytes] | None = None
        self._reread: Callable[[int, int], bytes] | None = None
        self._repairing = threading.Lock()
        self._wanted = -1
        self._finished = self._failed = False
        self.is_proven = True

    def begin(
        self,
        path: Path,
        journal: "DownloadJournal",
        reread: Callable[[int, int], bytes] | None = None,
        is_proven: bool = True,
    ) -> None:
        """Start: `journal` records what is in the file at `path`. A second start fails readers of the first.

        `reread` reads a span from the store again; `is_proven` if all bytes are compared with a digest in the end.
        """
        with self._changed:
            if self._journal is None and not self._failed:
                self._journal, self._path, self._reread, self.is_proven = journal, path, reread, is_proven
                self._wanted = journal.plan.count - 1  # a zip's directory is at its end
            else:
                self._failed = True
            self._changed.notify_all()

    def take(self, missing: list[int]) -> int:
        """Remove from `missing` the chunk to fetch next: the one that a reader waits for, or else the first."""
        with self._changed:
            return missing.pop(missing.index(self._wanted) if self._wanted in missing else 0)

    def advance(self) -> None:
        """Wake the readers: more bytes have arrived."""
        with self._changed:
            self._changed.notify_all()

    def finish(self) -> None:
        self._finished = True

    def fail(self) -> None:
        """Mark bytes that have not arrived by now as lost."""
        with self._changed:
            self._failed = self._failed or not self._finished
            self._changed.notify_all()

    def close(self) -> None:
        """Fail all readers."""
        self.fail()
        if self._file is not None:
            self._file.close()

    @property
    def size(self) -> int:
        """Bytes of the object; waits for the download to start."""
        return self._started().plan.size

    def bytes_missing(self) -> int:
        """Bytes still to come; waits for the download to start."""
        journal = self._started()
        return journal.plan.size - journal.bytes_done()

    def is_complete(self) -> bool:
        """Whether everything has arrived, in one download of one version."""
        return self._finished and not self._failed

    def is_now(self, path: Path) -> bool:
        """Whether everything that was read here is the file at `path` now."""
        if self._file is None or not self.is_complete():
            return False
        return os.path.samestat(os.fstat(self._file.fileno()), path.stat())

    def wait(self, start: int, end: int) -> None:
        """Wait until the bytes from `start` up to `end` have arrived.

        Raises IncompleteDownloadError and what `tick` raises.
        """
        journal = self._started()
        with self._changed:
            while True:
                finished = self._finished  # then missing bytes do not exist: a damaged directory may ask for such
                chunk = self._first_missing(journal, start, min(end, journal.plan.size))
                if chunk is None:
                    return
                if finished:
                    raise IncompleteDownloadError(f"The object has no bytes from {start} to {end}.")
                self._wanted = chunk
                self._wait()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end` or the object's end; waits for them."""
        self.wait(start, end)
        assert self._file is not None
        return os.pread(self._file.fileno(), max(0, min(end, self.size) - start), start)

    def repair(self, start: int, end: int) -> bool:
        """Read arrived bytes again from the store, in place of those in the file; returns whether they differ.

        Any thread may. Raises what the store raises. The journal keeps the CRC of the bytes that came first, so that a
        resumed download fetches this chunk again.
        """
        with self._repairing:
            came = self.read(start, end)
            if self._reread is None or self._path is None or (again := self._reread(start, start + len(came))) == came:
                return False
            assert self._file is not None
            os.pwrite(self._file.fileno(), again, start)
            return True

    def _started(self) -> "DownloadJournal":
        with self._changed:
            while self._journal is None:
                self._wait()
            if self._file is None and self._path is not None and not self._failed:
                self._file = self._path.open("r+b")
            return self._journal

    def _wait(self) -> None:
        if self._failed:
            raise IncompleteDownloadError("The object cannot be read before its download ends: wait for it.")
        self._changed.wait(_TICK_S)
        self._tick()

    def _first_missing(self, journal: "DownloadJournal", start: int, end: int) -> int | None:
        """The first incomplete chunk between `start` and `end`; after a failure every chunk counts as incomplete."""
        plan = journal.plan
        for chunk in range(start // plan.chunk, -(-end // plan.chunk)):
            begin, _ = plan.span(chunk)
            received, _ = journal.received.get(chunk, (0, 0))
            if self._failed or received < min(end - begin, plan.length(chunk)):
                return chunk
        return None


class SeekableFile(io.RawIOBase):
    """A read-only file of a known size that can be read anywhere, from `_at` on."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at


class PartialFile(SeekableFile):
    """A partial download as a file; reads wait for bytes that have not arrived."""

    def __init__(self, incoming: PartialDownload) -> None:
        super().__init__(incoming.size)
        self._incoming = incoming

    def read(self, size: int | None = -1) -> bytes:
        end = self._incoming.size if size is None or size < 0 else self._at + size
        data = self._incoming.read(self._at, end)
        self._at += len(data)
        return data


@dataclass(frozen=True)
class ChunkPlan:
    """An object cut into chunks of `chunk` bytes, the last one maybe shorter.

    Chunk i holds the bytes from `span(i)[0]` up to, but not including, `span(i)[1]`.
    """

    size: int
    chunk: int

    @property
    def count(self) -> int:
        return -(-self.size // self.chunk)

    def span(self, index: int) -> tuple[int, int]:
        return index * self.chunk, min(self.size, (index + 1) * self.chunk)

    def length(self, index: int) -> int:
        start, end = self.span(index)
        return end - start


def plan_chunks(size: int) -> ChunkPlan:
    """Chunks of 1 to 16 MiB: small ones spread a small object over all threads and let it arrive nearly in order,
    large ones cost a large object fewer requests.
    """
    return ChunkPlan(size, min(max(-(-size // (_CHUNKS * MIB)), 1), 16) * MIB)


@dataclass
class DownloadJournal:
    """The progress of downloading one version of one object.

    `received` maps a chunk to the number of its leading bytes that have arrived, and their CRC-32.
    """

    version: str
    plan: ChunkPlan
    received: dict[int, tuple[int, int]] = field(default_factory=dict)

    def header(self) -> str:
        return json.dumps({"version": self.version, "size": self.plan.size, "chunk": self.plan.chunk}) + "\n"

    def line(self, index: int) -> str:
        return json.dumps([index, *self.received[index]]) + "\n"

    def text(self) -> str:
        return self.header() + "".join(self.line(index) for index in self.received)

    def missing(self) -> list[int]:
        """The incomplete chunks."""
        return [index for index in range(self.plan.count) if self._bytes_of(index) < self.plan.length(index)]

    def bytes_done(self) -> int:
        return sum(map(self._bytes_of, list(self.received)))  # a list, since other threads may add to it

    def _bytes_of(self, index: int) -> int:
        return self.received.get(index, (0, 0))[0]


class JournalWriter:
    """Appends to a journal's open file; any thread of the download may."""

    def __init__(self, journal: DownloadJournal, file: IO[str]) -> None:
        self.journal = journal
        self._file, self._lock = file, threading.Lock()

    def record(self, index: int, received: int, crc: int) -> None:
        """Record that the first `received` bytes of a chunk are in the file, with this CRC-32."""
        with self._lock:
            self.journal.received[index] = (received, crc)
            self._file.write(self.journal.line(index))
            self._file.flush()


def parse_journal(text: str) -> DownloadJournal | None:
    """The journal in `text`; it ends at the first damaged line, and is None if the header is damaged."""
    lines = text.split("\n")[:-1]  # anything after the last newline is an unfinished line
    try:
        head = json.loads(lines[0])
        journal = DownloadJournal(str(head["version"]), ChunkPlan(int(head["size"]), int(head["chunk"])))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    if journal.plan.size < 0 or journal.plan.chunk < 1:
        return None
    for line in lines[1:]:
        try:
            index, received, crc = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            break
        if type(index) is not int or index not in range(journal.plan.count):
            continue
        if type(received) is int and 0 <= received <= journal.plan.length(index):
            journal.received[index] = (received, crc)
    return journal


def journal_path(part: Path) -> Path:
    """The journal's file beside the unfinished file."""
    return part.with_name(part.name + ".json")


def resume(part: Path, version: str, size: int, between: Callable[[], None] = lambda: None) -> DownloadJournal:
    """The journal to continue from: an earlier one of the same version, each of its chunks verified, or a new one.

    Afterwards the file `part` has the object's size, and the journal beside it is the one returned. `between` is called
    after each verified block and may raise; then nothing has changed.
    """
    path = journal_path(part)
    remove_link(part)
    found = parse_journal(path.read_text(errors="replace")) if path.exists() and part.exists() else None
    journal = DownloadJournal(version, plan_chunks(size))
    if found is not None and (found.version, found.plan) == (journal.version, journal.plan):
        journal.received = {
            index: (received, crc)
            for index, (received, crc) in found.received.items()
            if _crc(part, journal.plan.span(index)[0], received, between) == crc
        }
    else:
        part.unlink(missing_ok=True)  # a new file, so that a leftover thread of an earlier download writes to the old
    with open_unlinked(part, "ab") as file:
        file.truncate(size)
    write_atomic(path, journal.text().encode(), path.with_name(path.name + ".tmp"))
    return journal


def _crc(part: Path, start: int, count: int, between: Callable[[], None]) -> int:
    crc, left = 0, count
    with part.open("rb") as file:
        file.seek(start)
        while left > 0 and (block := file.read(min(left, MIB))):
            crc = zlib.crc32(block, crc)
            left -= len(block)
            between()
    return crc if left == 0 else -1
