"""Reads the members of a zip in place, even during its download: its directory, at the end, is fetched first."""

import bisect
import os
import struct
import weakref
import zipfile
import zlib
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from inat_job.errors import BadDataError
from inat_job.ingest.container import (
    DAMAGED,
    LINK,
    REPEATED,
    Load,
    check_count,
    check_size,
    check_unfolding,
    is_not_damage,
    plain_name,
)
from inat_job.ingest.decode import Rejected
from inat_job.ingest.zip_directory import ZipMember, read_directory
from inat_job.signals import Stop, never
from inat_job.storage.disk import disk_errors
from inat_job.storage.partial_download import PartialDownload, PartialFile

_HEADER = struct.Struct("<4sHHHHHLLLHH")
"""A member's local header: signature, version, flags, method, time, date, CRC, two sizes, lengths of name and extra."""

_READS = 4
"""Reads of a member from its store, while each differs from the one before, until it is taken for damaged there."""

_SUMS_FOLLOW = 0x8  # a flag
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods unfold a few bytes to GiB before they can be cut


class ZipArchive:
    """A zip file; members are found by its directory, and any thread reads them. Of equal names the last counts.

    While the zip is `incoming`, each member is waited for.
    """

    def __init__(self, path: Path, incoming: PartialDownload | None = None, stop: Stop = never) -> None:
        self._path, self._incoming = path, incoming
        self._file = PartialFile(incoming) if incoming else path.open("rb")
        weakref.finalize(self, self._file.close)
        size = incoming.size if incoming else path.stat().st_size
        self._directory = read_directory(self._file, size, path)
        if incoming and not incoming.is_proven and _repaired(incoming, self._directory.start, size):
            self._directory = read_directory(self._file, size, path)
        self._skipped: dict[str, str] = {}
        self._members: dict[str, int] = {}  # by name, the position in the directory
        self._replaced: dict[str, list[int]] = defaultdict(list)  # the positions of those before the last of a name
        starts, unfolded, packed = array("Q", [self._directory.start, size]), 0, 0
        for at, member in self._directory.members(stop):
            starts.append(member.offset)
            check_count(path, len(starts) - 2)
            unfolded, packed = unfolded + member.size, packed + member.packed
            if member.is_folder:
                continue
            if (name := plain_name(member.name, path)) in self._members:
                self._skipped[name] = REPEATED
                self._replaced[name].append(self._members[name])
            elif member.is_link:
                self._skipped[name] = LINK
            self._members[name] = at
        check_unfolding(path, size, unfolded, packed)
        self._starts = array("Q", sorted(starts))

    def names(self) -> list[str]:
        return list(self._members)

    def skipped(self, used: Collection[str] = ()) -> Mapping[str, str]:
        if not used:
            return self._skipped
        with disk_errors(self._path):
            lost = [name for name in self._members if name in self._replaced or name not in used]
            lost = [name for name in lost if any(map(self._is_misnamed, self._positions(name)))]
        return {**self._skipped, **dict.fromkeys(lost, f"{DAMAGED}: its name differs from the one in the directory")}

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        where = {name: self._directory.member(self._members[name]).offset for name in names}
        for name in sorted(names, key=where.__getitem__):
            member = self._directory.member(self._members[name])
            if self._incoming:  # here: in `_read` it would block all threads
                self._incoming.wait(member.offset, self._end(member))
            yield name, partial(self._read, member)

    def _end(self, member: ZipMember) -> int:
        """Where the next member begins: the directory does not have the length of a member's own header."""
        return self._starts[min(bisect.bisect(self._starts, member.offset), len(self._starts) - 1)]

    def _read(self, member: ZipMember) -> bytes:
        if member.flags & 1:
            raise BadDataError(f"{self._path} is encrypted: use an archive without a password.")
        if member.is_link:
            raise Rejected(LINK)
        if member.method not in _BOUNDED:
            raise Rejected(f"compression method {member.method} is not supported, only deflate is")
        check_size(max(member.size, member.packed))
        with disk_errors(self._path):
            for _ in range(_READS):
                try:
                    return self._content(member)
                except Exception as error:
                    if is_not_damage(error):
                        raise
                    reason = Rejected(f"{DAMAGED}: {error}")
                if not (self._incoming and self._incoming.repair(member.offset, self._end(member))):
                    break
            raise reason

    def _content(self, member: ZipMember) -> bytes:
        """Exactly two reads, independent of other threads; zipfile has one file with a lock for all of them."""
        start = member.offset + _HEADER.size
        header = self._read_at(member.offset, start)
        signature, *_, name, extra = _HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise zipfile.BadZipFile("there is no member where the directory says")
        incoming = None if self._incoming is None or self._incoming.is_proven else self._incoming
        if incoming and _differs(header, incoming.read(start, start + name), member):
            _repaired(incoming, member.offset, start + name)  # harmless, but another digest
        start += name + extra
        data = self._read_at(start, start + member.packed)
        if member.method == zipfile.ZIP_DEFLATED:  # cut to the directory's size, however much it unfolds to
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(1, member.size))
        if len(data) != member.size:
            raise zipfile.BadZipFile("its length is not what the directory says")
        if zlib.crc32(data) != member.crc:
            raise zipfile.BadZipFile("Bad CRC-32")
        return data

    def _positions(self, name: str) -> list[int]:
        return [*self._replaced.get(name, ()), self._members[name]]

    def _is_misnamed(self, position: int) -> bool:
        """Whether a member's own header has another name, of equal length, than the directory: names have no CRC."""
        member = self._directory.member(position)
        start, length = member.offset + _HEADER.size, len(member.stored_name)
        incoming = None if self._incoming is None or self._incoming.is_proven else self._incoming
        for _ in range(2):
            header = self._read_at(member.offset, start)
            own = self._read_at(start, start + length)
            if len(header) < _HEADER.size or _HEADER.unpack(header)[-2] != length or header[:4] != b"PK\3\4":
                return False  # not where the directory says, which reading it would tell
            if own.replace(b"\\", b"/") == member.stored_name.replace(b"\\", b"/"):
                return False
            if not (incoming and _repaired(incoming, member.offset, start + length)):
                break
        return True

    def _read_at(self, start: int, end: int) -> bytes:
        if self._incoming:
            return self._incoming.read(start, end)
        return os.pread(self._file.fileno(), end - start, start)


def _repaired(incoming: PartialDownload, start: int, end: int) -> bool:
    """Read bytes that have no CRC, such as names, until two readings agree; returns whether they have changed."""
    before = incoming.read(start, end)
    for _ in range(_READS):
        if not incoming.repair(start, end):
            break
    return incoming.read(start, end) != before


def _differs(header: bytes, name: bytes, member: ZipMember) -> bool:
    """Whether a member's own header contradicts the directory, whose entries it repeats."""
    _, version, flags, method, time, date, crc, packed, size, *_ = _HEADER.unpack(header)
    if (version, flags, method, time, date) != (member.needed, member.flags, member.method, member.time, member.date):
        return True
    sums = (crc, packed, size) != (member.crc, member.packed, member.size)
    follow = flags & _SUMS_FOLLOW or 0xFFFFFFFF in (packed, size)  # after the data, or in a zip64's extra field
    return (sums and not follow) or name != member.stored_name
