"""Reads a zip's directory, which lists its members and is at the end of the file (PKWARE's APPNOTE 4.3 to 4.6).

Entries stay the bytes that they are until a member is read: zipfile's objects for 1.5 million members take 1.1 GB.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from inat_job import signals
from inat_job.errors import BadDataError
from inat_job.ingest.container import DamagedArchiveError, check_count
from inat_job.signals import Stop
from inat_job.storage.partial_download import PartialFile

UTF8 = 0x800
"""The flag of a name in UTF-8."""

MAX_DIRECTORY_BYTES = 2**29

_MARK = b"PK"
"""The first bytes of every record of a zip."""

_END = struct.Struct("<4s4H2LH")
"""The end: signature, number of this part, part with the directory, entries here and in all, the directory's size and
offset, length of the comment."""

_LOCATOR, _END64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
"""A zip64's own end, and the record between it and the end."""

_ENTRY = struct.Struct("<4s6H3L5H2L")
"""An entry: signature, version that made it, version needed, flags, method, time, date, CRC, two sizes, lengths of
name, extra fields and comment, part, two kinds of attributes, offset."""

_ENDS = _END64.size + _LOCATOR.size + _END.size
_END_WITHIN = _ENDS + 2**16  # a comment is behind the end
_SIZES, _UNICODE_NAME = 0x0001, 0x7075  # extra fields
_UNIX = (3, 19)  # systems, in the upper byte of the version; 19 is macOS


@dataclass(frozen=True, slots=True)
class ZipMember:
    """An entry of the directory; `offset` is where the member begins in the file, `stored_name` its name in bytes."""

    name: str
    stored_name: bytes
    needed: int
    flags: int
    method: int
    time: int
    date: int
    crc: int
    packed: int
    size: int
    attributes: int
    offset: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith(("/", "\\"))

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.attributes >> 16)


@dataclass(frozen=True)
class ZipDirectory:
    """The `entries` of a zip as bytes, where they start in the file, and how many bytes precede the zip."""

    entries: bytes
    start: int
    shift: int

    def members(self, stop: Stop) -> Iterator[tuple[int, ZipMember]]:
        """Every member, with its position for `member`. Raises BadZipFile, UnicodeDecodeError and Preempted."""
        at = count = 0
        while at < len(self.entries):
            if count % 4096 == 0:
                signals.check(stop, "reading the archive's directory")
            yield at, self.member(at)
            at += _ENTRY.size + sum(_ENTRY.unpack_from(self.entries, at)[10:13])
            count += 1

    def member(self, at: int) -> ZipMember:
        """The member at a position."""
        fields = _ENTRY.unpack_from(self.entries, at)
        signature, made, needed, flags, method, time, date, crc, packed, size, named, more = fields[:12]
        at += _ENTRY.size
        if signature != b"PK\1\2" or at + named + more > len(self.entries):
            raise zipfile.BadZipFile("its directory is damaged")
        stored, extra = self.entries[at : at + named], self.entries[at + named : at + named + more]
        size, packed, offset = _sizes(extra, size, packed, fields[-1])
        name = _name(stored, flags, made >> 8, extra)
        offset += self.shift
        return ZipMember(name, stored, needed, flags, method, time, date, crc, packed, size, fields[-2], offset)


def read_directory(file: IO[bytes] | PartialFile, size: int, path: Path, left_out: int = 0) -> ZipDirectory:
    """The directory of the zip of `size` bytes; its end is read first, and then no more than is necessary.

    `file` may hold only the end of a zip: `left_out` is the number of bytes before it. Raises BadDataError for too many
    members, and DamagedArchiveError for a file without some of its bytes.
    """
    for length in (_ENDS, _END_WITHIN):
        before = file.seek(max(0, size - length))
        tail = file.read(size - before) or b""
        if 0 <= (at := tail.rfind(b"PK\5\6")) <= len(tail) - _END.size:
            break
    else:
        file.seek(0)
        raise DamagedArchiveError(cut_off(path, size, file.read(len(_MARK)) or b""))
    count, length, offset, end = _stated(tail, at, path)
    check_count(path, count)
    if length > MAX_DIRECTORY_BYTES:
        raise BadDataError(
            f"{path} has a directory of {length:,} bytes, more than {MAX_DIRECTORY_BYTES:,}: use shorter names."
        )
    start = before + end - length
    if (missing := offset - start - left_out) > 0:
        had = left_out + size + missing
        raise DamagedArchiveError(f"{path} lacks {missing:,} of the {had:,} bytes that it had: get all of it again.")
    if start < 0:
        raise zipfile.BadZipFile("its directory is longer than the file")
    file.seek(start)
    entries = file.read(length) or b""
    if len(entries) < length:
        raise zipfile.BadZipFile("its directory is cut off")
    return ZipDirectory(entries, start, start - offset)


def cut_off(path: object, size: int, head: bytes) -> str:
    """The message about a zip without an end, or about a file whose `head`, its first bytes, is not a zip's either."""
    if not head.startswith(_MARK):
        return f"{path} is no zip archive, by its beginning and its end: check its address."
    return f"{path} is cut off: it has {size:,} bytes, without the directory at its end: get all of it again."


def _stated(tail: bytes, at: int, path: Path) -> tuple[int, int, int, int]:
    """What the end at `tail[at:]` states: number of members, bytes and offset of the directory; and where it ends."""
    _, part, _, _, count, length, offset, _ = _END.unpack_from(tail, at)
    end64 = at - _LOCATOR.size - _END64.size
    parts = 1
    if end64 >= 0 and tail[at - _LOCATOR.size :].startswith(b"PK\6\7") and tail[end64:].startswith(b"PK\6\6"):
        *_, parts = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        *_, count, length, offset = _END64.unpack_from(tail, end64)
        part, at = 0, end64
    if parts > 1 or part not in (0, 0xFFFF):
        raise BadDataError(f"{path} is a part of a split zip: join all parts (zip -s 0 {path.name} --out x.zip).")
    return count, length, offset, at


def _fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """The extra fields: kind and content."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        yield kind, extra[at + 4 : at + 4 + length]
        at += 4 + length


def _sizes(extra: bytes, *stated: int) -> tuple[int, ...]:
    """Size, packed size and offset; those that do not fit into 32 bits are in a field of zip64."""
    if 0xFFFFFFFF not in stated:
        return stated
    field = next((content for kind, content in _fields(extra) if kind == _SIZES), b"")
    large = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
    found = tuple(next(large, None) if each == 0xFFFFFFFF else each for each in stated)
    if None in found:
        raise zipfile.BadZipFile("its directory has a damaged zip64 field")
    return found  # type: ignore[return-value]


def _name(stored: bytes, flags: int, system: int, extra: bytes) -> str:
    """A member's name. WinRAR and 7-Zip may keep the real one in an extra field (APPNOTE 4.6.9), and macOS does not
    flag its UTF-8.
    """
    if stored.isascii() and not extra:
        return stored.partition(b"\0")[0].decode("ascii")
    for kind, content in _fields(extra):
        if kind == _UNICODE_NAME and content[:5] == struct.pack("<BL", 1, zlib.crc32(stored)):
            with suppress(UnicodeDecodeError):
                if name := content[5:].decode():
                    return name
    stored = stored.partition(b"\0")[0]
    if system in _UNIX and not flags & UTF8:
        with suppress(UnicodeDecodeError):
            return stored.decode()
    return stored.decode("utf-8" if flags & UTF8 else "cp437")
