"""The local disk: its errors become ours, a finished file is made durable, and SHA-256 of files."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, TransientError

FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_MISPLACED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY)


@contextmanager
def disk_errors(path: Path, *, missing: str | None = None) -> Iterator[None]:
    """Turn an OSError about `path` into ours; `missing` is the sentence for a file that is not there."""
    try:
        yield
    except OSError as error:
        raise _translated(error, path, missing) from error


def _translated(error: OSError, path: Path, missing: str | None) -> Exception:
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return no_space(path)
    if error.errno in _FORBIDDEN:
        return NoPermissionError(f"No permission for {path} ({reason}): check its owner, its mode and the mount.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and missing:
        return BadDataError(missing)
    if error.errno == errno.ENOENT:
        return ConflictError(f"The folder of {path} went away: check that nothing removes it while the job runs.")
    if error.errno in _MISPLACED:
        return ConflictError(f"A file or folder is in the way of {path} ({reason}): remove it or choose another place.")
    return TransientError(f"The disk failed at {path} ({reason}): try again, or choose another folder.")


def no_space(path: Path, needed: int | None = None) -> ConflictError:
    """The error for a full disk, naming the folder and the space."""
    wanted = f", {megabytes(needed)} more needed" if needed is not None else ""
    return ConflictError(
        f"No space left in {path.parent} ({megabytes(_free(path.parent))} free{wanted}): "
        "free some, or choose a folder on a larger disk."
    )


def require_space(path: Path, needed: int) -> None:
    """Raise ConflictError now rather than after most of a long pull."""
    if needed > _free(path.parent):
        raise no_space(path, needed)


def publish(part: Path, path: Path) -> None:
    """Make `part` durable and let it be `path`, in one step."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def megabytes(count: float) -> str:
    """A number of bytes in MB, for messages."""
    return f"{count / 1e6:,.0f} MB"


_BLOCK = 2**22


def sha256_of(path: Path, between: Callable[[], None] = lambda: None) -> str:
    """Hexadecimal digest of a file; `between` is called from block to block and may raise. Raises OSError."""
    return sha256_of_blocks(blocks_of(path), between)


def sha256_of_blocks(blocks: Iterable[bytes], between: Callable[[], None] = lambda: None) -> str:
    """Hexadecimal digest of what the blocks are together."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        between()
    return digest.hexdigest()


def blocks_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a few MiB at a time. Raises OSError."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
