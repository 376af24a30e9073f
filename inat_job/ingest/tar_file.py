"""Reads the members of a tar, compressed or not, in the archive's own order."""

import io
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO

from inat_job import signals
from inat_job.errors import BadDataError
from inat_job.ingest import container, kinds
from inat_job.ingest.container import LINK, REPEATED, Load, check_count, check_size, check_unfolding, plain_name
from inat_job.ingest.decode import Rejected
from inat_job.signals import Stop, never

MAX_HEADER_BYTES = 2**20
"""Bytes between two members' contents: a header, its long name and its extensions."""


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
        for number, member, _ in _members(path):
            check_count(path, number)
            if number % 256 == 0:
                signals.check(stop, "listing the archive")
            self._enter(plain_name(member.name, path), number, member)

    def names(self) -> list[str]:
        return [*self._numbers, *self._rejected]

    def skipped(self, used: Collection[str] = ()) -> Mapping[str, str]:
        return {**self._rejected, **self._skipped}

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        wanted: dict[int, list[str]] = defaultdict(list)
        for name in names:
            if name in self._rejected:
                yield name, partial(container.refuse, Rejected(self._rejected[name]))
            else:
                wanted[self._numbers[name]].append(name)
        with container.archive_errors(self._path):
            for number, member, archive in _members(self._path):
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


class BoundedReader(io.BufferedIOBase):
    """Reads what the file at `path`, of `size` bytes, unpacks to, within limits that tarfile lacks: it allocates the
    length that a header states for the next, and keeps all headers before a member.

    `last` holds the bytes of the last read. Raises BadDataError beyond the limit of unfolding and for more than `most`
    bytes since `allow`, ReadError for a single read of as many.
    """

    def __init__(self, file: IO[bytes], path: Path, size: int) -> None:
        self._file, self._path, self._size = file, path, size
        self.last = b""
        self.allow(MAX_HEADER_BYTES)

    def allow(self, most: int) -> None:
        self._most, self._left = most, most + 2 * tarfile.BLOCKSIZE  # the block before a header, and a member's own

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self._most:
            raise tarfile.ReadError(f"a header says that it has more than {self._most} bytes")
        self._left -= size
        if self._left < 0:
            raise _too_many_headers(self._path)
        check_unfolding(self._path, self._size, self.tell() + size)
        self.last = self._file.read(size)
        return self.last

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        check_unfolding(self._path, self._size, offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _too_many_headers(path: Path) -> BadDataError:
    return BadDataError(
        f"{path} has too many headers: more than {MAX_HEADER_BYTES} bytes between two members: "
        "pack its files again (tar --format=gnu)."
    )


def _members(path: Path) -> Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]:
    """The numbered members of a tar. Raises ReadError for a damaged header, BadDataError for too many headers.

    tarfile takes a damaged header for the end of the archive, and would silently lose everything after it; at the real
    end there is nothing or a block of zeros.
    """
    with kinds.open_tar(path) as file:
        stream = BoundedReader(file, path, path.stat().st_size)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            number = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or it would keep every member in memory
                if sum(len(name) + len(value) for name, value in archive.pax_headers.items()) > MAX_HEADER_BYTES:
                    raise _too_many_headers(path)  # for all members, from between several
                stream.allow(container.MAX_FILE_BYTES)
                yield number, member, archive
                stream.allow(MAX_HEADER_BYTES)
                number += 1
            if any(stream.last):
                raise tarfile.ReadError(f"the header after its {number} members is damaged")
            stream.allow(MAX_HEADER_BYTES)
            while stream.read(MAX_HEADER_BYTES):  # the checksum of a compressed file is at its very end
                stream.allow(MAX_HEADER_BYTES)


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
