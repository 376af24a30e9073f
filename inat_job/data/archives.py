"""Reads picture files where they are: in a zip or tar, a folder or under a prefix. Nothing is unpacked to disk."""

import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from inat_job.data.decode import Rejected
from inat_job.errors import BadDataError, JobError
from inat_job.storage import Store

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
LARGEST_FILE = 256 * 2**20
"""Bytes beyond which a member is not read: no photo is that large."""

UNFOLDS_AT_MOST, UNFOLDS_ANYWAY = 200, 2**30
"""Times its own size that an archive may unfold to, and bytes that it may in any case: pictures hardly shrink, and
deflate's most is 1,032."""

Load = Callable[[], bytes]

_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, UnicodeError),
    *(NotImplementedError, ValueError, OverflowError, RuntimeError),  # of headers that make no sense
)
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


def check_unfolding(path: Path, unfolded: int, packed: int = 0) -> None:
    """Raise BadDataError for an archive that claims to be far more than it can be.

    `unfolded` and `packed` are what its members take in all: together they can't take more than the file holds, unless
    they share their bytes (D. Fifield, A better zip bomb, 2019).
    """
    size = path.stat().st_size
    if unfolded > UNFOLDS_AT_MOST * size + UNFOLDS_ANYWAY or packed > size:
        raise BadDataError(
            f"{path} has {size} bytes and claims to unfold to {unfolded} or more: this is a zip bomb, not a data set."
        )


class Zip:
    """A zip file; members are found by its directory and read by any thread. Of a name's members the last counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = zipfile.ZipFile(path)
        listed = self._file.infolist()
        check_unfolding(path, sum(each.file_size for each in listed), sum(each.compress_size for each in listed))
        files = (member for member in listed if not member.filename.endswith(("/", "\\")))
        self._members = {plain_name(member.filename): member for member in files}

    def names(self) -> list[str]:
        return list(self._members)

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        for name in sorted(names, key=lambda name: self._members[name].header_offset):
            yield name, lambda member=self._members[name]: self._read(member)  # type: ignore[misc]

    def _read(self, member: zipfile.ZipInfo) -> bytes:
        if member.flag_bits & 1:
            raise BadDataError(f"{self._path} is encrypted: give an archive without a password.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Rejected(_LINK)
        _check_size(member.file_size)
        try:
            return self._file.read(member)
        except _DAMAGE as error:
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
        unfolded = 0
        with tarfile.open(path) as archive:
            for number, member in enumerate(archive):
                unfolded += member.size
                check_unfolding(path, unfolded)
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
        with _damage(self._path), tarfile.open(self._path) as archive:
            for number, member in enumerate(archive):
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
    """The files of a folder or under a prefix, each an object of its own."""

    def __init__(self, store: Store, names: Collection[str]) -> None:
        self._store = store
        self._names = list(names)

    def names(self) -> list[str]:
        return self._names

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        for name in names:
            yield name, lambda name=name: self._store.read(name)  # type: ignore[misc]


def _loaded(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Load:
    """A tar is one stream, so its bytes are read here, in order, and only handed over later."""
    try:
        _check_size(member.size)
    except Rejected as reason:
        return partial(_raise, reason)
    file = archive.extractfile(member)
    assert file is not None
    data = file.read()
    return lambda: data


def _raise(reason: Rejected) -> bytes:
    raise reason


def _check_size(size: int) -> None:
    if size > LARGEST_FILE:
        raise Rejected(f"{size} bytes are more than {LARGEST_FILE}")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except JobError:
        raise
    except FileNotFoundError:
        raise BadDataError(f"{path} does not exist: check --data.") from None
    except _DAMAGE as error:
        words = " ".join(str(error).split())
        raise BadDataError(f"{path} is no intact archive ({words}): fetch it again.") from None
