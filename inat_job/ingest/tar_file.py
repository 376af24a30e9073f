"""Reads the members of a tar, compressed or not, in its own order."""

import bz2
import gzip
import lzma
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from inat_job.ingest import limits
from inat_job.ingest.container import LINK, Load, damage, plain_name, refuse
from inat_job.ingest.decode import Rejected

_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


class Tar:
    """A tar file, compressed or not, read in its own order.

    A hard link has the bytes of the file that stood under its target's name before it; of a name that stands there
    more than once (`tar -r`) the last counts, as when it is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}  # which member of the archive holds the bytes of a name
        self._rejected: dict[str, str] = {}
        for number, member, _ in _members(path, limits.LARGEST_HEADER):
            limits.check_count(path, number)
            self._enter(plain_name(member.name), number, member)

    def names(self) -> list[str]:
        return [*self._numbers, *self._rejected]

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        wanted: dict[int, list[str]] = defaultdict(list)
        for name in names:
            if name in self._rejected:
                yield name, partial(refuse, Rejected(self._rejected[name]))
            else:
                wanted[self._numbers[name]].append(name)
        with damage(self._path):
            for number, member, archive in _members(self._path, limits.LARGEST_FILE):
                if number in wanted:
                    read = _loaded(archive, member)
                    yield from ((name, read) for name in wanted[number])

    def _enter(self, name: str, number: int, member: tarfile.TarInfo) -> None:
        target = plain_name(member.linkname)
        if member.isreg() or (member.islnk() and target in self._numbers):
            self._rejected.pop(name, None)
            self._numbers[name] = number if member.isreg() else self._numbers[target]
        elif member.issym() or member.islnk():
            self._numbers.pop(name, None)
            self._rejected[name] = LINK if member.issym() else f"a hard link to {target}, which is not before it"


def _members(path: Path, most: int) -> Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]:
    """The members of a tar, numbered; no more than `most` bytes of it are read at once.

    tarfile takes a header that makes no sense for the end of the archive, and all that follows would be lost; at the
    real one there is nothing or a block of zeros. Raises ReadError.
    """
    with _plain(path) as file:
        stream = limits.Bounded(file, path, path.stat().st_size, most)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            number = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember each one
                yield number, member, archive
                number += 1
            if any(stream.last):
                raise tarfile.ReadError(f"the header after its {number} members is damaged")


def _plain(path: Path) -> IO[bytes]:
    """The file, whatever it is compressed with."""
    with path.open("rb") as file:
        start = file.read(6)
    unfold = next((unfold for mark, unfold in _COMPRESSED.items() if start.startswith(mark)), None)
    return path.open("rb") if unfold is None else unfold(path)


def _loaded(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Load:
    """A tar is one stream, so its bytes are read here, in order, and only handed over later."""
    try:
        limits.check_size(member.size)
    except Rejected as reason:
        return partial(refuse, reason)
    file = archive.extractfile(member)
    assert file is not None
    data = file.read()
    return lambda: data
