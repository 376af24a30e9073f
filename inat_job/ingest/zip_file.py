"""Reads the members of a zip in place, even during its download: its directory, at the end, is fetched first."""

import bisect
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from inat_job.errors import BadDataError
from inat_job.ingest.container import LINK, Load, check_count, check_size, check_unfolding, is_not_damage, plain_name
from inat_job.ingest.decode import Rejected
from inat_job.storage.disk import disk_errors
from inat_job.storage.partial_download import PartialDownload, PartialFile

_HEADER = struct.Struct("<4s22xHH")  # a member's local header: signature, lengths of its name and its extra field
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods unfold a few bytes to GiB before they can be cut


class ZipArchive:
    """A zip file; members are found by its directory, and any thread reads them. Of equal names the last counts.

    While the zip is `incoming`, each member is waited for.
    """

    def __init__(self, path: Path, incoming: PartialDownload | None = None) -> None:
        self._path, self._incoming = path, incoming
        self._file = zipfile.ZipFile(PartialFile(incoming) if incoming else path)
        size = incoming.size if incoming else path.stat().st_size
        listed = self._file.infolist()
        check_count(path, len(listed))
        packed = sum(each.compress_size for each in listed)
        check_unfolding(path, size, sum(each.file_size for each in listed), packed)
        files = (member for member in listed if not member.filename.endswith(("/", "\\")))
        self._members = {plain_name(member.filename): member for member in files}
        self._starts = sorted({*(each.header_offset for each in listed), self._file.start_dir, size})

    def names(self) -> list[str]:
        return list(self._members)

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
            try:
                return self._content(member)
            except Exception as error:
                if is_not_damage(error):
                    raise
                raise Rejected(f"damaged in the archive: {error}") from None

    def _content(self, member: zipfile.ZipInfo) -> bytes:
        """Exactly two reads, independent of other threads; zipfile has one file with a lock for all of them."""
        start = member.header_offset + _HEADER.size
        signature, name, extra = _HEADER.unpack(self._read_at(member.header_offset, start))
        if signature != b"PK\3\4":
            raise zipfile.BadZipFile("there is no member where the directory says")
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
