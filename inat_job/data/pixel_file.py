"""The pixel file of the decoded cache: one square of pixels per row, read and written by any thread.

Rows are written with pwrite, because a fresh memory map faults in each page first, which takes several times as long.
Rows are hashed as they are written, and the file's digest is that of the row hashes, so that no second pass over the
file is needed; checking a finished file uses all cores.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from inat_job import signals
from inat_job.host import cpu
from inat_job.signals import Stop
from inat_job.storage.disk import remove_link

_ROWS_PER_TASK = 64
"""Rows that a thread reads and hashes in one task."""


class PixelFile:
    """An open file of `count` rows, each uint8 RGB of shape (side, side, 3)."""

    def __init__(self, descriptor: int, count: int, side: int) -> None:
        self._descriptor, self._count = descriptor, count
        self._row = side * side * 3  # bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._count * self._row

    def read(self, row: int) -> bytes:
        """The pixels of a row; fewer bytes if the file ends early."""
        return os.pread(self._descriptor, self._row, row * self._row)

    def write(self, row: int, pixels: np.ndarray) -> None:
        """Write a row's pixels, which must be C-contiguous. Raises OSError."""
        self._write(row, pixels.data)

    def hash(self, row: int) -> str:
        """SHA-256 of a row."""
        return hashlib.sha256(self.read(row)).hexdigest()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order. Raises OSError."""
        ascending = sorted(rows)
        for kept, row in enumerate(ascending):
            if row != kept:
                self._write(kept, self.read(row))
        os.truncate(self._descriptor, len(rows) * self._row)
        if rows != ascending:
            now_at = {row: at for at, row in enumerate(ascending)}
            self._permute([now_at[row] for row in rows])

    def _permute(self, sources: Sequence[int]) -> None:
        """Move the row in `sources[i]` to `i`, for all i, in place: along each cycle, with one row in memory."""
        moved = [False] * len(sources)
        for start, source in enumerate(sources):
            if moved[start] or source == start:
                continue
            first, at = self.read(start), start
            while sources[at] != start:
                self._write(at, self.read(sources[at]))
                moved[at], at = True, sources[at]
            self._write(at, first)
            moved[at] = True

    def allocate(self) -> None:
        """Set the file's length and allocate its disk space. Raises OSError."""
        if hasattr(os, "posix_fallocate"):  # not on macOS, where a full disk is noticed only during the work
            os.posix_fallocate(self._descriptor, 0, self.nbytes)
        os.truncate(self._descriptor, self.nbytes)

    def digest(self, stop: Stop) -> str:
        """The file's digest (see the function `digest`), read on all cores. Raises OSError, Preempted."""
        starts = range(0, self._count, _ROWS_PER_TASK)
        with ThreadPoolExecutor(cpu.available_cpus()) as pool:
            return digest(row for hashes in pool.map(partial(self._hashes, stop), starts) for row in hashes)

    def _write(self, row: int, data: bytes | memoryview) -> None:
        if os.pwrite(self._descriptor, data, row * self._row) != self._row:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _hashes(self, stop: Stop, start: int) -> list[str]:
        signals.check(stop, "checking the prepared images")
        return [self.hash(row) for row in range(start, min(start + _ROWS_PER_TASK, self._count))]


def digest(hashes: Iterable[str]) -> str:
    """The digest of a file whose rows have these hashes: the SHA-256 of their concatenation."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextmanager
def create(path: Path, count: int, side: int) -> Iterator[PixelFile]:
    """Open the file, its contents kept, with all disk space allocated: a disk that is too small fails now.

    Raises OSError.
    """
    remove_link(path)
    path.touch()
    with open_existing(path, count, side, writable=True) as file:
        try:
            file.allocate()
        except OSError:
            path.unlink()
            raise
        yield file


@contextmanager
def open_existing(path: Path, count: int, side: int, *, writable: bool = False) -> Iterator[PixelFile]:
    """Open the file of `count` rows unchanged; a complete cache may be read only. Raises OSError."""
    descriptor = os.open(path, (os.O_RDWR | os.O_NOFOLLOW if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        yield PixelFile(descriptor, count, side)
    finally:
        os.close(descriptor)
