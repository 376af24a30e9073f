"""Reads picture files where they are: in a zip or tar, a folder or under a prefix. Nothing is unpacked to disk."""

import bz2
import errno
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from inat_job.data import bounds
from inat_job.data.decode import Rejected
from inat_job.errors import BadDataError, JobError
from inat_job.storage import Store
from inat_job.storage.disk import disk_errors

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

Load = Callable[[], bytes]

_COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # with others a few bytes unfold to GiB before they can be cut
_LINK = "a link, not a picture"


class Container(Protocol):
    """What holds picture files."""

    def names(self) -> list[str]:
        """Paths of the files and links, with `/`, each once."""

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        """Each name once, in the order that is cheapest to read, with a function that any thread may call."""


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive."""
    return name.lower().endswith(SUFFIXES)


def plain_name(name: str) -> str:
    """A member's path without `.` parts and doubled or leading slashes, and with `/` where Windows wrote `\\`."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def open_archive(path: Path) -> "Zip | Tar":
    """The container in a file. Raises BadDataError when it is damaged."""
    with _damage(path):
        return Zip(path) if path.name.lower().endswith(".zip") else Tar(path)


@dataclass(frozen=True)
class Held:
    """A file's bytes that are in memory already."""

    data: bytes

    def __call__(self) -> bytes:
        return self.data


class Zip:
    """A zip file; members are found by its directory and read by any thread. Of a name's members the last counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = zipfile.ZipFile(path)
        listed = self._file.infolist()
        bounds.check_count(path, len(listed))
        packed = sum(each.compress_size for each in listed)
        bounds.check_unfolding(path, sum(each.file_size for each in listed), packed)
        files = (member for member in listed if not member.filename.endswith(("/", "\\")))
        self._members = {plain_name(member.filename): member for member in files}

    def names(self) -> list[str]:
        return list(self._members)

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        for name in sorted(names, key=lambda name: self._members[name].header_offset):
            yield name, partial(self._read, self._members[name])

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        if member.flag_bits & 1:
            raise BadDataError(f"{self._path} is encrypted: give an archive without a password.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Rejected(_LINK)
        if member.compress_type not in _BOUNDED:
            raise Rejected(f"of compression method {member.compress_type}, where only deflate is read")
        bounds.check_size(member.file_size)
        with disk_errors(self._path):
            try:
                with self._file.open(member) as file:
                    return file.read(member.file_size)  # `ZipFile.read` unfolds all that is there, and then cuts it
            except Exception as error:
                if _machines(error):
                    raise
                raise Rejected(f"damaged in the archive: {error}") from None


class Tar:
    """A tar file, compressed or not, read in its own order.

    A hard link has the bytes of the file that stood under its target's name before it; of a name that stands there
    more than once (`tar -r`) the last counts, as when it is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}  # which member of the archive holds the bytes of a name
        self._rejected: dict[str, str] = {}
        for number, member, _ in _members(path, bounds.LARGEST_HEADER):
            bounds.check_count(path, number)
            self._enter(plain_name(member.name), number, member)

    def names(self) -> list[str]:
        return [*self._numbers, *self._rejected]

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        wanted: dict[int, list[str]] = defaultdict(list)
        for name in names:
            if name in self._rejected:
                yield name, partial(_raise, Rejected(self._rejected[name]))
            else:
                wanted[self._numbers[name]].append(name)
        with _damage(self._path):
            for number, member, archive in _members(self._path, bounds.LARGEST_FILE):
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
            self._rejected[name] = _LINK if member.issym() else f"a hard link to {target}, which is not before it"


class Loose:
    """The files of a folder or under a prefix, each an object of its own; `sizes` has its bytes by its name."""

    def __init__(self, store: Store, sizes: Mapping[str, int]) -> None:
        self._store, self._sizes = store, sizes

    def names(self) -> list[str]:
        return list(self._sizes)

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        for name in names:
            yield name, partial(self._read, name)

    def _read(self, name: str) -> bytes:
        bounds.check_size(self._sizes[name])
        return self._store.read(name)


def _members(path: Path, most: int) -> Iterator[tuple[int, tarfile.TarInfo, tarfile.TarFile]]:
    """The members of a tar, numbered; no more than `most` bytes of it are read at once.

    tarfile takes a header that makes no sense for the end of the archive, and all that follows would be lost; at the
    real one there is nothing or a block of zeros. Raises ReadError.
    """
    with _plain(path) as file:
        stream = bounds.Bounded(file, path, most)
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
        bounds.check_size(member.size)
    except Rejected as reason:
        return partial(_raise, reason)
    file = archive.extractfile(member)
    assert file is not None
    return Held(file.read())


def _raise(reason: Rejected) -> bytes:
    raise reason


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    with disk_errors(path, missing=f"{path} does not exist: check --data."):
        try:
            yield
        except Exception as error:
            if _machines(error):
                raise
            words = " ".join(str(error).split())
            raise BadDataError(f"{path} is no intact archive ({words}): fetch it again.") from None


def _machines(error: Exception) -> bool:
    """Whether an error is ours or the machine's: by a damaged file, zipfile and tarfile raise nearly any other."""
    disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # a header may tell to seek below 0
    return disk or isinstance(error, JobError | MemoryError)
