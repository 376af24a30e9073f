"""What is known of a half-finished pull: a line for the object and one for each block of a chunk, with the chunk's CRC.

The CRC is read back before a chunk's beginning is believed, so that a machine that lost power costs a chunk and not the
truth.
"""

import json
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from inat_job.storage.base import Entry

MIB = 1024 * 1024
_CHUNKS = 64


@dataclass(frozen=True)
class Plan:
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


def plan_for(size: int) -> Plan:
    """Small chunks share out a small object among threads, and let it land nearly in order; large ones cost a large
    object fewer requests.
    """
    return Plan(size, min(max(-(-size // (_CHUNKS * MIB)), 1), 16) * MIB)


@dataclass
class Journal:
    """The journal of pulling one version of one object.

    `reached` maps a chunk to the bytes of its beginning that are there, and their CRC-32.
    """

    version: str
    plan: Plan
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


class Log:
    """A journal and its open file, to which the threads of a pull write how far their chunks are."""

    def __init__(self, journal: Journal, file: IO[str]) -> None:
        self.journal = journal
        self._file, self._lock = file, threading.Lock()

    def note(self, index: int, there: int, crc: int) -> None:
        """So many bytes of a chunk are in the file, with this CRC."""
        with self._lock:
            self.journal.reached[index] = (there, crc)
            self._file.write(self.journal.line(index))
            self._file.flush()


def parse(text: str) -> Journal | None:
    """The journal in `text`; a torn or foreign line ends it, a torn header makes it None."""
    lines = text.split("\n")[:-1]  # what follows the last newline was never finished
    try:
        head = json.loads(lines[0])
        journal = Journal(str(head["version"]), Plan(int(head["size"]), int(head["chunk"])))
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


def resume(part: Path, entry: Entry, between: Callable[[], None] = lambda: None) -> Journal:
    """What is left to do for `entry`: an earlier journal of the same version, each chunk verified, or a fresh one.

    Afterwards `part` has the object's size, and the journal beside it says what is returned. `between` is called from
    block to block that is verified, and may raise: then nothing has changed.
    """
    path = journal_path(part)
    found = parse(path.read_text(errors="replace")) if path.exists() and part.exists() else None
    journal = Journal(entry.version, plan_for(entry.size))
    if found is not None and (found.version, found.plan) == (journal.version, journal.plan):
        journal.reached = {
            index: (there, crc)
            for index, (there, crc) in found.reached.items()
            if _crc(part, journal.plan.span(index)[0], there, between) == crc
        }
    else:
        part.unlink(missing_ok=True)  # a new file, so that a straggler of an earlier pull writes to the old one
    with part.open("ab") as file:
        file.truncate(entry.size)
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
