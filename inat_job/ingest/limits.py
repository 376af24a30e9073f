"""How much an archive may unfold to, in all and at once: a bomb is refused by what it claims, or where it unfolds."""

import io
import tarfile
from pathlib import Path
from typing import IO

from inat_job.errors import BadDataError
from inat_job.ingest.decode import Rejected

LARGEST_FILE = 256 * 2**20
"""Bytes beyond which a member is not read: no photo is that large."""

LARGEST_HEADER = 2**20
"""Bytes that a tar may have between two members' contents: a header, its long name and what else is said of it."""

UNFOLDS_AT_MOST, UNFOLDS_ANYWAY = 200, 2**30
"""Times its own size that an archive may unfold to, and bytes that it may in any case: images hardly shrink, and
deflate's most is 1,032."""

MOST_NAMES = 5_000_000
"""Members of an archive: so many names take about a GiB."""


def check_unfolding(path: Path, size: int, unfolded: int, packed: int = 0) -> None:
    """Raise BadDataError for an archive of `size` bytes that claims to be far more than it can be.

    `unfolded` and `packed` are what its members take in all: together they can't take more than the file holds, unless
    they share their bytes (D. Fifield, A better zip bomb, 2019).
    """
    if unfolded > UNFOLDS_AT_MOST * size + UNFOLDS_ANYWAY or packed > size:
        raise BadDataError(
            f"{path} has {size} bytes and claims to unfold to {unfolded} or more: this is a zip bomb, not a data set."
        )


def check_count(path: Path, names: int) -> None:
    """Raise BadDataError for more members than can be kept in mind."""
    if names > MOST_NAMES:
        raise BadDataError(f"{path} has more than {MOST_NAMES} members: give a smaller data set.")


def check_size(size: int) -> None:
    """Raise Rejected for a member that is too large to be a image."""
    if size > LARGEST_FILE:
        raise Rejected(f"{size} bytes are more than {LARGEST_FILE}")


class Bounded(io.BufferedIOBase):
    """What a file at `path`, of `size` bytes, unfolds to, read within bounds: tarfile takes a header's word for the
    length of the next.

    `last` is what was read last. Raises BadDataError beyond what an archive may unfold to, ReadError for more than
    `most` bytes at once.
    """

    def __init__(self, file: IO[bytes], path: Path, size: int, most: int) -> None:
        self._file, self._path, self._size, self._most = file, path, size, most
        self.last = b""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self._most:
            raise tarfile.ReadError(f"a header claims to have more than {self._most} bytes")
        check_unfolding(self._path, self._size, self.tell() + size)
        self.last = self._file.read(size)
        return self.last

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        check_unfolding(self._path, self._size, offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
