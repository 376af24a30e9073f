"""Reading an object while it is still on its way: what has landed of it, and which piece is waited for."""

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from inat_job.errors import TransientError

if TYPE_CHECKING:
    from inat_job.storage.journal import Journal  # which itself knows what a store is

_TICK_S = 0.1


class LostError(TransientError):
    """The object can't be read before it is whole: its server has no ranges, or it comes anew."""


class Landing:
    """What has landed of one object in its unfinished file.

    The pull tells of its progress and asks what to fetch next; readers wait for the bytes that they need, and raise
    LostError as soon as these will not come this way. `tick` runs in a reader that waits, and may raise.
    """

    def __init__(self, tick: Callable[[], None] = lambda: None) -> None:
        self._tick = tick
        self._changed = threading.Condition()
        self._journal: Journal | None = None
        self._part: Path | None = None
        self._file: IO[bytes] | None = None
        self._wanted = -1
        self._whole = self._lost = False

    def begin(self, part: Path, journal: "Journal") -> None:
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

    def _begun(self) -> "Journal":
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

    def _gap(self, journal: "Journal", start: int, end: int) -> int | None:
        """The first chunk of which something is missing between `start` and `end`; all is, of what came anew."""
        plan = journal.plan
        for chunk in range(start // plan.chunk, -(-end // plan.chunk)):
            begin, _ = plan.span(chunk)
            there, _ = journal.reached.get(chunk, (0, 0))
            if self._lost or there < min(end - begin, plan.length(chunk)):
                return chunk
        return None


class LandingFile(io.RawIOBase):
    """A landing as a file to read, at a place of its own; reading waits for what has not landed."""

    def __init__(self, landing: Landing) -> None:
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
