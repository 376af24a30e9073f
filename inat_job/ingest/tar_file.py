"""Reads the members of a tar, compressed or not, in the archive's own order."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from inat_job import signals
from inat_job.ingest import container
from inat_job.ingest.container import LINK, REPEATED, Load, check_count, check_size, check_unfolding, plain_name
from inat_job.ingest.decode import Rejected
from inat_job.signals import Stop, never

MAX_HEADER_BYTES = 2**20
"""Bytes between two members' contents: a header, its long name and its extensions."""

_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


class TarArchive:
    """A tar file, compressed or not, read in its own order.

    A hard link has the bytes of the file that precedes it under its target's name. Of several members with one name
    (`tar -r`) the last counts, as when unpacking.
    """

    def __init__(self, path: Path, stop: Stop = never) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}  # by name, the number of the member that holds its bytes
        self._rejected: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        for number, member, _ in _members(path, MAX_HEADER_BYTES):
            check_count(path, number)
            if number % 256 == 0:
                signals.check(stop, "listing the archive")
            self._enter(plain_name(member.name, path), number, member)

    def names(self) -> list[str]:
        return [*self._numbers, *self._rejected]

    def skipped(self) -> Mapping[str, str]:
        return self._skipped

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        wanted: dict[int, list[str]] = defaultdict(list)
        for name in names:
            if name in self._rejected:
                yield name, partial(container.refuse, Rejected(self._rejected[name]))
            else:
                wanted[self._numbers[name]].append(name)
        with container.archive_errors(self._path):
            for number, member, archive in _members(self._path, container.MAX_FILE_BYTES):
                if number in wanted:
                    load = _read_member(archive, member)
                    yield from ((name, load) for name in wanted[number])

    def _enter(self, name: str, number: int, member: tarfile.TarInfo) -> None:
        target = plain_name(member.linkname, self._path)
        if name in self._numbers or name in self._rejected:
            self._skipped[name] = REPEATED
        if member.isreg() or (member.islnk() and target in self._numbers):
            self._rejected.pop(name, None)
            self._numbers[name] = number if member.isreg() else self._numbers[target]
        elif member.issym() or member.islnk():
            self._numbers.pop(name, None)
            self._rejected[name] = LINK if member.issym() else f"a hard link to {target}, which does not precede it"
        elif not member.isdir():
            self._skipped[name] = "neither a file nor a folder"


def is_tar(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are those of a tar, compressed or not."""
    if head.startswith(tuple(_COMPRESSED)):
        return True
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class BoundedReader(io.BufferedIOBase):
    """Reads what the file at `path`, of `size` bytes, unfolds to, within limits that tarfile lacks: it believes a
    header's claim about the length of the next.

    `last` holds the bytes of the last read. Raises BadDataError beyond the limit of unfolding, ReadError for a read of
    more than `most` bytes.
    """

    def __init__(self, file: IO[bytes], path: Path, size: int, most: int) -> None:
        self._file, self._path, self._size, self._most = file, path, size, most
        self.last = b""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self._most:
            raise tarfile.ReadError(f"a header says that it has more than {self._most} bytes")
        check_unfolding(self._path, self._size, self.tell() + size)
        self.last = self._file.read(size)
        return self.last

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        check_unfolding(self._path, self._size, offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _members(path: Path, most: int) -> Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]:
    """The numbered members of a tar; no read exceeds `most` bytes. Raises ReadError for a damaged header.

    tarfile takes a damaged header for the end of the archive, and would silently lose everything after it; at the real
    end there is nothing or a block of zeros.
    """
    with _open(path) as file:
        stream = BoundedReader(file, path, path.stat().st_size, most)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            number = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or it would keep every member in memory
                yield number, member, archive
                number += 1
            if any(stream.last):
                raise tarfile.ReadError(f"the header after its {number} members is damaged")
            while stream.read(MAX_HEADER_BYTES):  # the checksum of a compressed file is at its very end
                pass


def _open(path: Path) -> IO[bytes]:
    """The file, decompressed."""
    with path.open("rb") as file:
        start = file.read(6)
    decompress = next((function for magic, function in _COMPRESSED.items() if start.startswith(magic)), None)
    return path.open("rb") if decompress is None else decompress(path)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Load:
    """Read a member now, because a tar is one stream, for a `Load` that returns it later."""
    try:
        check_size(member.size)
    except Rejected as reason:
        return partial(container.refuse, reason)
    file = archive.extractfile(member)
    assert file is not None
    data = file.read()
    return lambda: data
