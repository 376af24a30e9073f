"""Reads the members of a zip in place, even during its download: its directory, at the end, is fetched first."""

import bisect
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

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
from inat_job.storage.disk import disk_errors
from inat_job.storage.partial_download import PartialDownload, PartialFile

_HEADER = struct.Struct("<4sHHHHHLLLHH")
"""A member's local header: signature, version, flags, method, time, date, CRC, two sizes, lengths of name and extra."""

_READS = 4
"""Reads of a member from its store, while each differs from the one before, until it is taken for damaged there."""

_SUMS_FOLLOW, _UTF8 = 0x8, 0x800  # flags
_END_WITHOUT_COMMENT = 22 + 20 + 56  # the end, and a zip64's locator and end
_END_WITHIN = 22 + 2**16 + 20 + 56 + 1024  # the end, its comment, and a zip64's locator and end
_UNICODE_NAME = 0x7075  # an extra field

_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods unfold a few bytes to GiB before they can be cut


class ZipArchive:
    """A zip file; members are found by its directory, and any thread reads them. Of equal names the last counts.

    While the zip is `incoming`, each member is waited for.
    """

    def __init__(self, path: Path, incoming: PartialDownload | None = None) -> None:
        self._path, self._incoming = path, incoming
        with PartialFile(incoming) if incoming else path.open("rb") as file:
            check_count(path, _stated_count(file))
        self._file = zipfile.ZipFile(PartialFile(incoming) if incoming else path)
        size = incoming.size if incoming else path.stat().st_size
        if incoming and not incoming.is_proven and _repaired(incoming, self._file.start_dir, size):
            self._file = zipfile.ZipFile(PartialFile(incoming))
        listed = self._file.infolist()
        check_count(path, len(listed))
        packed = sum(each.compress_size for each in listed)
        check_unfolding(path, size, sum(each.file_size for each in listed), packed)
        self._skipped: dict[str, str] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in listed:
            if (given := member_name(member)).endswith(("/", "\\")):
                continue
            if (name := plain_name(given, path)) in self._members:
                self._skipped[name] = REPEATED
            self._members[name] = member
        self._starts = sorted({*(each.header_offset for each in listed), self._file.start_dir, size})

    def names(self) -> list[str]:
        return list(self._members)

    def skipped(self) -> Mapping[str, str]:
        return self._skipped

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        for name in sorted(names, key=lambda name: self._members[name].header_offset):
            member = self._members[name]
            if self._incoming:  # here: waiting within zipfile would block the other threads
                self._incoming.wait(member.header_offset, self._end(member))
            yield name, partial(self._read, member)

    def _end(self, member: zipfile.ZipInfo) -> int:
        """Where the next member begins: the directory does not have the length of a member's own header."""
        return self._starts[min(bisect.bisect(self._starts, member.header_offset), len(self._starts) - 1)]

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        if member.flag_bits & 1:
            raise BadDataError(f"{self._path} is encrypted: use an archive without a password.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Rejected(LINK)
        if member.compress_type not in _BOUNDED:
            raise Rejected(f"compression method {member.compress_type} is not supported, only deflate is")
        check_size(max(member.file_size, member.compress_size))
        with disk_errors(self._path):
            for _ in range(_READS):
                try:
                    return self._content(member)
                except Exception as error:
                    if is_not_damage(error):
                        raise
                    reason = Rejected(f"{DAMAGED}: {error}")
                if not (self._incoming and self._incoming.repair(member.header_offset, self._end(member))):
                    break
            raise reason

    def _content(self, member: zipfile.ZipInfo) -> bytes:
        """Exactly two reads, independent of other threads; zipfile has one file with a lock for all of them."""
        start = member.header_offset + _HEADER.size
        header = self._read_at(member.header_offset, start)
        signature, *_, name, extra = _HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise zipfile.BadZipFile("there is no member where the directory says")
        incoming = None if self._incoming is None or self._incoming.is_proven else self._incoming
        if incoming and _differs(header, incoming.read(start, start + name), member):
            _repaired(incoming, member.header_offset, start + name)  # harmless, but another digest
        start += name + extra
        data = self._read_at(start, start + member.compress_size)
        if member.compress_type == zipfile.ZIP_DEFLATED:  # cut to the directory's size, however much it unfolds to
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(1, member.file_size))
        if len(data) != member.file_size:
            raise zipfile.BadZipFile("its length is not what the directory says")
        if zlib.crc32(data) != member.CRC:
            raise zipfile.BadZipFile("Bad CRC-32")
        return data

    def _read_at(self, start: int, end: int) -> bytes:
        if self._incoming:
            return self._incoming.read(start, end)
        assert self._file.fp is not None
        return os.pread(self._file.fp.fileno(), end - start, start)


def _stated_count(file: IO[bytes] | PartialFile) -> int:
    """Members that the end of a zip states, 0 if unknown: the directory takes memory before zipfile has counted it.

    No more is read than the end, since the rest may still be on its way; a comment can make it 64 KiB longer.
    """
    size = file.seek(0, os.SEEK_END)
    for length in (_END_WITHOUT_COMMENT, _END_WITHIN):
        start = file.seek(max(0, size - length))
        tail = file.read() or b""
        at = tail.rfind(b"PK\5\6")
        if 0 <= at <= len(tail) - 12:
            return _count_in(tail, at, start)
    return 0


def _count_in(tail: bytes, at: int, start: int) -> int:
    """The members that the end record at `tail[at:]` states; `tail` starts at `start` of the file."""
    (count,) = struct.unpack_from("<H", tail, at + 10)
    if count == 0xFFFF and tail[at - 20 : at - 16] == b"PK\6\7":  # zip64, whose own end is before its locator
        (offset,) = struct.unpack_from("<Q", tail, at - 12)
        if start <= offset and offset - start + 40 <= len(tail):
            (count,) = struct.unpack_from("<Q", tail, offset - start + 32)
    return int(count)


def member_name(member: zipfile.ZipInfo) -> str:
    """A member's name. WinRAR and 7-Zip may keep the real one in an extra field, which zipfile reads from Python 3.12
    on (PKWARE's APPNOTE 4.6.9).
    """
    encoded = member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437", errors="replace")
    at, extra = 0, member.extra
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == _UNICODE_NAME and field[:5] == struct.pack("<BL", 1, zlib.crc32(encoded)):
            with suppress(UnicodeDecodeError):
                return field[5:].decode() or member.filename
        at += 4 + length
    return member.filename


def _repaired(incoming: PartialDownload, start: int, end: int) -> bool:
    """Read bytes that have no CRC, such as names, until two readings agree; returns whether they have changed."""
    before = incoming.read(start, end)
    for _ in range(_READS):
        if not incoming.repair(start, end):
            break
    return incoming.read(start, end) != before


def _differs(header: bytes, name: bytes, member: zipfile.ZipInfo) -> bool:
    """Whether a member's own header contradicts the directory, whose entries it repeats."""
    _, version, flags, method, time, date, crc, packed, size, *_ = _HEADER.unpack(header)
    year, month, day, hour, minute, second = member.date_time
    when = (hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day)
    if (version, flags, method, time, date) != (member.extract_version, member.flag_bits, member.compress_type, *when):
        return True
    sums = (crc, packed, size) != (member.CRC, member.compress_size, member.file_size)
    follow = flags & _SUMS_FOLLOW or 0xFFFFFFFF in (packed, size)  # after the data, or in a zip64's extra field
    return (sums and not follow) or name != member.orig_filename.encode("utf-8" if flags & _UTF8 else "cp437")
