"""A download in progress: which parts have arrived, a file that waits for the rest, and a journal to resume from.

The journal has one line for the object and one for each block of a chunk, with the chunk's CRC. The CRC is checked
before a partial chunk is reused, so a power cut costs a chunk and never correctness.
"""

import io
import json
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from inat_job.errors import TransientError

if TYPE_CHECKING:
    pass  # which itself knows what a store is

_TICK_S = 0.1


class LostError(TransientError):
    """The object can't be read before it is whole: its server has no ranges, or it comes anew."""


class PartialDownload:
    """What has landed of one object in its unfinished file.

    The pull tells of its progress and asks what to fetch next; readers wait for the bytes that they need, and raise
    LostError as soon as these will not come this way. `tick` runs in a reader that waits, and may raise.
    """

    def __init__(self, tick: Callable[[], None] = lambda: None) -> None:
        self._tick = tick
        self._changed = threading.Condition()
        self._journal: DownloadJournal | None = None
        self._part: Path | None = None
        self._file: IO[bytes] | None = None
        self._wanted = -1
        self._whole = self._lost = False

    def begin(self, part: Path, journal: "DownloadJournal") -> None:
        """`part` is being filled as `journal` tells; what begins a second time has other bytes than were read."""
        with self._changed:
            if self._journal is None and not self._lost:
                self._journal, self._part = journal, part
                self._wanted = journal.plan.count - 1  # a zip's directory stands at its end
            else:
                self._lost = True
            self._changed.notify_all()

    def take(self, missing: list[int]) -> int:
        """Remove from `missing` the chunk that is to be fetched next: the one waited for, or else the first."""
        with self._changed:
            return missing.pop(missing.index(self._wanted) if self._wanted in missing else 0)

    def advance(self) -> None:
        """More has landed."""
        with self._changed:
            self._changed.notify_all()

    def finish(self) -> None:
        """All has landed."""
        self._whole = True

    def lose(self) -> None:
        """What has not landed by now never will."""
        with self._changed:
            self._lost = self._lost or not self._whole
            self._changed.notify_all()

    def close(self) -> None:
        """End all reading."""
        self.lose()
        if self._file is not None:
            self._file.close()

    @property
    def size(self) -> int:
        """Bytes of the object, as soon as it begins to land."""
        return self._begun().plan.size

    def bytes_missing(self) -> int:
        """Those that are still to come."""
        journal = self._begun()
        return journal.plan.size - journal.bytes_done()

    def whole(self) -> bool:
        """Whether everything has landed, and nothing came anew."""
        return self._whole and not self._lost

    def became(self, path: Path) -> bool:
        """Whether all that was read here is what lies at `path` now."""
        if self._file is None or not self.whole():
            return False
        return os.path.samestat(os.fstat(self._file.fileno()), path.stat())

    def wait(self, start: int, end: int) -> None:
        """Return when the bytes from `start` up to `end` have landed. Raises LostError and what `tick` raises."""
        journal = self._begun()
        with self._changed:
            while True:
                last = self._whole  # then what is not here is nowhere, as a damaged directory may want it
                chunk = self._gap(journal, start, min(end, journal.plan.size))
                if chunk is None:
                    return
                if last:
                    raise LostError(f"The object has no bytes from {start} to {end}.")
                self._wanted = chunk
                self._wait()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`, or to the object's end."""
        self.wait(start, end)
        assert self._file is not None
        return os.pread(self._file.fileno(), max(0, min(end, self.size) - start), start)

    def _begun(self) -> "DownloadJournal":
        with self._changed:
            while self._journal is None:
                self._wait()
            if self._file is None and self._part is not None and not self._lost:
                self._file = self._part.open("rb")
            return self._journal

    def _wait(self) -> None:
        if self._lost:
            raise LostError("The object is not to be read before it is whole: wait for it.")
        self._changed.wait(_TICK_S)
        self._tick()

    def _gap(self, journal: "DownloadJournal", start: int, end: int) -> int | None:
        """The first chunk of which something is missing between `start` and `end`; all is, of what came anew."""
        plan = journal.plan
        for chunk in range(start // plan.chunk, -(-end // plan.chunk)):
            begin, _ = plan.span(chunk)
            there, _ = journal.reached.get(chunk, (0, 0))
            if self._lost or there < min(end - begin, plan.length(chunk)):
                return chunk
        return None


class PartialFile(io.RawIOBase):
    """A landing as a file to read, at a place of its own; reading waits for what has not landed."""

    def __init__(self, landing: PartialDownload) -> None:
        self._landing, self._at = landing, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._landing.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._landing.size if size is None or size < 0 else self._at + size
        data = self._landing.read(self._at, end)
        self._at += len(data)
        return data


MIB = 1024 * 1024
_CHUNKS = 64


@dataclass(frozen=True)
class DownloadPlan:
    """An object cut into chunks. Chunk i holds the bytes from `span(i)[0]` up to, not including, `span(i)[1]`."""

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


def plan_for(size: int) -> DownloadPlan:
    """Small chunks share out a small object among threads, and let it land nearly in order; large ones cost a large
    object fewer requests.
    """
    return DownloadPlan(size, min(max(-(-size // (_CHUNKS * MIB)), 1), 16) * MIB)


@dataclass
class DownloadJournal:
    """The journal of pulling one version of one object.

    `reached` maps a chunk to the bytes of its beginning that are there, and their CRC-32.
    """

    version: str
    plan: DownloadPlan
    reached: dict[int, tuple[int, int]] = field(default_factory=dict)

    def header(self) -> str:
        return json.dumps({"version": self.version, "size": self.plan.size, "chunk": self.plan.chunk}) + "\n"

    def line(self, index: int) -> str:
        return json.dumps([index, *self.reached[index]]) + "\n"

    def text(self) -> str:
        return self.header() + "".join(self.line(index) for index in self.reached)

    def missing(self) -> list[int]:
        """The chunks that are not whole."""
        return [index for index in range(self.plan.count) if self._there(index) < self.plan.length(index)]

    def bytes_done(self) -> int:
        return sum(map(self._there, list(self.reached)))  # a list, since threads may add to it

    def _there(self, index: int) -> int:
        return self.reached.get(index, (0, 0))[0]


class BlockLog:
    """A journal and its open file, to which the threads of a pull write how far their chunks are."""

    def __init__(self, journal: DownloadJournal, file: IO[str]) -> None:
        self.journal = journal
        self._file, self._lock = file, threading.Lock()

    def note(self, index: int, there: int, crc: int) -> None:
        """So many bytes of a chunk are in the file, with this CRC."""
        with self._lock:
            self.journal.reached[index] = (there, crc)
            self._file.write(self.journal.line(index))
            self._file.flush()


def parse(text: str) -> DownloadJournal | None:
    """The journal in `text`; a torn or foreign line ends it, a torn header makes it None."""
    lines = text.split("\n")[:-1]  # what follows the last newline was never finished
    try:
        head = json.loads(lines[0])
        journal = DownloadJournal(str(head["version"]), DownloadPlan(int(head["size"]), int(head["chunk"])))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    if journal.plan.size < 0 or journal.plan.chunk < 1:
        return None
    for line in lines[1:]:
        try:
            index, there, crc = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            break
        if type(index) is not int or index not in range(journal.plan.count):
            continue
        if type(there) is int and 0 <= there <= journal.plan.length(index):
            journal.reached[index] = (there, crc)
    return journal


def journal_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def resume(part: Path, version: str, size: int, between: Callable[[], None] = lambda: None) -> DownloadJournal:
    """What is left to download of an object: an earlier journal of the same version, each chunk verified, or a new one.

    Afterwards `part` has the object's size, and the journal beside it says what is returned. `between` is called from
    block to block that is verified, and may raise: then nothing has changed.
    """
    path = journal_path(part)
    found = parse(path.read_text(errors="replace")) if path.exists() and part.exists() else None
    journal = DownloadJournal(version, plan_for(size))
    if found is not None and (found.version, found.plan) == (journal.version, journal.plan):
        journal.reached = {
            index: (there, crc)
            for index, (there, crc) in found.reached.items()
            if _crc(part, journal.plan.span(index)[0], there, between) == crc
        }
    else:
        part.unlink(missing_ok=True)  # a new file, so that a straggler of an earlier pull writes to the old one
    with part.open("ab") as file:
        file.truncate(size)
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(journal.text())
    fresh.replace(path)  # in one step: what is known outlives a kill right here
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
