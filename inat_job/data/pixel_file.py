"""The file of the decoded cache: a square of pixels for each row, read and written by any thread, hashed row by row.

Rows are written by pwrite: in a fresh memory map each page of a row is faulted in first, which takes several times as
long. They are hashed as they are written, and the file's digest is that of their hashes, so that no second pass over
the file is needed. Where one is, all cores share it.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from inat_job import signals
from inat_job.host import cpu
from inat_job.signals import Stop

_AT_ONCE = 64
"""PixelRows that a thread reads and hashes before it is asked again."""


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
        """The pixels of a row; fewer where the file ends."""
        return os.pread(self._descriptor, self._row, row * self._row)

    def write(self, row: int, pixels: np.ndarray) -> None:
        """Put a row's pixels in, C-contiguous. Raises OSError."""
        self._put(row, pixels.data)

    def hash(self, row: int) -> str:
        """SHA-256 of what a row holds."""
        return hashlib.sha256(self.read(row)).hexdigest()

    def keep(self, rows: Iterable[int]) -> None:
        """Leave these rows, in rising order, and none between them."""
        kept = 0
        for row in rows:
            if row != kept:
                self._put(kept, self.read(row))
            kept += 1
        os.truncate(self._descriptor, kept * self._row)

    def take_space(self) -> None:
        """Have the file as long as its rows, with all of its space. Raises OSError."""
        if hasattr(os, "posix_fallocate"):  # macOS has none; there a full disk shows as it fills
            os.posix_fallocate(self._descriptor, 0, self.nbytes)
        os.truncate(self._descriptor, self.nbytes)

    def digest(self, stop: Stop) -> str:
        """That of the file, see `digest`, by reading all of it on all cores. Raises OSError, Preempted."""
        starts = range(0, self._count, _AT_ONCE)
        with ThreadPoolExecutor(cpu.available_cpus()) as pool:
            return digest(hashed for part in pool.map(partial(self._hashes, stop), starts) for hashed in part)

    def _put(self, row: int, data: bytes | memoryview) -> None:
        if os.pwrite(self._descriptor, data, row * self._row) != self._row:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _hashes(self, stop: Stop, start: int) -> list[str]:
        signals.check(stop, "checking the prepared images")
        return [self.hash(row) for row in range(start, min(start + _AT_ONCE, self._count))]


def digest(hashes: Iterable[str]) -> str:
    """The digest of a file whose rows have these hashes: SHA-256 of one after the other."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextmanager
def create(path: Path, count: int, side: int) -> Iterator[PixelFile]:
    """The file, what is in it kept, with all of its space: a disk that is too small shows before the work.

    Raises OSError.
    """
    path.touch()
    with existing(path, count, side, writable=True) as file:
        try:
            file.take_space()
        except OSError:
            path.unlink()
            raise
        yield file


@contextmanager
def existing(path: Path, count: int, side: int, *, writable: bool = False) -> Iterator[PixelFile]:
    """The file of `count` rows as it is; a complete cache may be read only. Raises OSError."""
    descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        yield PixelFile(descriptor, count, side)
    finally:
        os.close(descriptor)
