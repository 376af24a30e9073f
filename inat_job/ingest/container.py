"""What every archive reader shares: the container's interface, plain member names, damage, and size limits.

A bomb is refused by the size that it claims, or where it unfolds beyond its limit.
"""

import errno
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from inat_job.data.layout import check_name
from inat_job.errors import BadDataError, JobError
from inat_job.ingest import kinds
from inat_job.ingest.decode import Rejected
from inat_job.storage.disk import disk_errors
from inat_job.storage.local import DEAD_LINK

Load = Callable[[], bytes]
"""Reads the bytes of one file; any thread may call it."""

LINK = "a link, not an image"

REPEATED = "another file of the same name follows"

DAMAGED = "damaged in the archive"
"""Beginning of the reason for an image whose bytes contradict the archive's own checks."""

MAX_FILE_BYTES = 256 * 2**20
"""Members beyond this size are not read: no photo is that large."""

MAX_UNFOLDING, ALWAYS_ALLOWED_BYTES = 200, 2**30
"""An archive may unfold to this many times its own size, or to this many bytes if that is more: images hardly
compress, and deflate reaches a factor of 1,032 at most."""

MAX_MEMBERS = 1_500_000
"""Members of an archive: so many names take almost 1 GB of memory."""


class Container(Protocol):
    """An archive, folder or prefix that holds image files."""

    def names(self) -> list[str]:
        """The paths of all files and links, with `/`, each once."""

    def skipped(self, used: Collection[str] = ()) -> Mapping[str, str]:
        """By path, why a member is not among the names, cannot be read, or is not the only one of this path.

        Names that are not `used` are checked for damage.
        """

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        """Each of the names once, in the order that is cheapest to read, with the function that reads it."""


def plain_name(name: str, path: Path) -> str:
    """A member's path without `.` segments and extra slashes, and with `/` instead of Windows' `\\`.

    Its letters are composed (NFC): macOS takes them apart, and é is one name in either form. Raises BadDataError
    for a path that is too long or too deep to be split.
    """
    check_name(name, path)
    return composed("/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".")))


def composed(name: str) -> str:
    """A name in Unicode's normal form C."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def links(skipped: Mapping[str, str]) -> dict[str, str]:
    """Those of the skipped names that are links to what cannot be read, and what each is."""
    return {name: reason for name, reason in skipped.items() if reason in (LINK, DEAD_LINK)}


def refuse(reason: Rejected) -> bytes:
    """The `Load` of a rejected file: raises the reason."""
    raise reason


class DamagedArchiveError(BadDataError):
    """An archive that contradicts its own checks, at its source or because it arrived so."""


@contextmanager
def archive_errors(path: Path) -> Iterator[None]:
    """Translate errors of the disk, and every other error into a DamagedArchiveError."""
    with disk_errors(path, missing=f"{path} does not exist: check --data."):
        try:
            yield
        except Exception as error:
            if is_not_damage(error) and not isinstance(error, DamagedArchiveError):
                raise
            if advice := _other_kind(path):
                raise DamagedArchiveError(f"{path} is {advice}.") from None
            if isinstance(error, DamagedArchiveError):
                raise
            reason = " ".join(str(error).split())
            raise DamagedArchiveError(f"{path} is not an intact archive ({reason}): download it again.") from None


def _other_kind(path: Path) -> str:
    """What a file is, and what to do with it, if it is nothing like what its name says."""
    with path.open("rb") as file:
        return kinds.mismatch(path.name, file.read(kinds.HEAD_BYTES))


def is_not_damage(error: Exception) -> bool:
    """Whether an error is the job's or the machine's; on a damaged file zipfile and tarfile raise almost any other."""
    disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # EINVAL: a negative offset
    return disk or isinstance(error, JobError | MemoryError)


def check_unfolding(path: Path, size: int, unfolded: int, packed: int = 0) -> None:
    """Raise BadDataError if an archive of `size` bytes claims to unfold beyond its limit.

    `unfolded` and `packed` are the members' total sizes: together they cannot be packed into more than the archive's
    size unless they share bytes (D. Fifield, A better zip bomb, 2019).
    """
    if unfolded > MAX_UNFOLDING * size + ALWAYS_ALLOWED_BYTES or packed > size:
        raise BadDataError(
            f"{path} has {size} bytes and would unpack to {unfolded} or more: this is a zip bomb, not a data set."
        )


def check_count(path: Path, members: int) -> None:
    """Raise BadDataError for more members than fit into memory."""
    if members > MAX_MEMBERS:
        raise BadDataError(
            f"{path} has {members:,} members or more, and at most {MAX_MEMBERS:,} fit into memory: "
            "use a smaller data set, or a folder."
        )


def check_size(size: int) -> None:
    """Raise Rejected for a member that is too large to be an image."""
    if size > MAX_FILE_BYTES:
        raise Rejected(f"{size} bytes are more than {MAX_FILE_BYTES}")
