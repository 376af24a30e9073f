"""The local disk: an OSError becomes one of the job's errors, files are replaced atomically, and files are hashed."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, TransientError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_OBSTRUCTED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_BLOCK_SIZE = 2**22
_MOST_LEVELS = 50
"""Levels of objects and lists in JSON; a report has six."""


@contextmanager
def disk_errors(path: Path, *, missing: str | None = None) -> Iterator[None]:
    """Translate an OSError about `path`; `missing` is the message for a file that does not exist.

    Raises ConflictError for a full disk, a deleted folder or a name that is taken, NoPermissionError, BadDataError with
    `missing`, and TransientError for everything else.
    """
    try:
        yield
    except OSError as error:
        raise _translated(error, path, missing) from error


def _translated(error: OSError, path: Path, missing: str | None) -> Exception:
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL:
        return no_space(path)
    if error.errno in _FORBIDDEN:
        return NoPermissionError(f"No permission for {path} ({reason}): check its owner, its mode and the mount.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and missing:
        return BadDataError(missing)
    if error.errno == errno.ENOENT:
        return ConflictError(
            f"The folder of {path} cannot be made, or was deleted: check the path, and that nothing deletes it while "
            "the job runs."
        )
    if error.errno in _OBSTRUCTED:
        return ConflictError(f"A file or folder is in the way of {path} ({reason}): remove it or choose another path.")
    return TransientError(f"The disk failed at {path} ({reason}): try again, or choose another folder.")


def no_space(path: Path, needed: int | None = None) -> ConflictError:
    """The error for a full disk, with the folder, the free space and the bytes `needed`."""
    more = f", {megabytes(needed)} more needed" if needed is not None else ""
    return ConflictError(
        f"No space left in {path.parent} ({megabytes(_free_bytes(path.parent))} free{more}): "
        "free some space, or choose a folder on a larger disk."
    )


def require_space(path: Path, needed: int) -> None:
    """Raise ConflictError before a long download, rather than near its end, if `needed` bytes do not fit."""
    if needed > _free_bytes(path.parent):
        raise no_space(path, needed)


def megabytes(count: float) -> str:
    """A number of bytes for a message, such as `1,234 MB`."""
    return f"{count / 1e6:,.0f} MB"


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def remove_link(path: Path) -> None:
    """Delete a link in the place of a file or folder to write: in a shared cache it may lead to what is not the job's.

    Raises OSError.
    """
    if path.is_symlink():
        path.unlink(missing_ok=True)


def open_unlinked(path: Path, mode: str) -> IO[Any]:
    """Open a file to write, but never through a link. Raises OSError."""
    remove_link(path)
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def write_atomic(path: Path, data: bytes, draft: Path | None = None) -> None:
    """Replace the contents of `path` in one step: after a kill it holds either the old bytes or the new ones.

    The bytes are written to `draft` first, a file beside `path` with a random name by default, so that concurrent
    writers don't collide. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft or path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open_unlinked(draft, "wb") as file:
            file.write(data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_named(path: Path, data: bytes) -> None:
    """As `write_atomic`, for a file that a person names: a link stays, and the file that it leads to is replaced.

    Raises OSError.
    """
    write_atomic(path.resolve(), data)


def refuse_foreign(path: Path, flag: str, kind: str, is_ours: Callable[[str], bool]) -> None:
    """Raise ConflictError if what `flag` names exists and may not be replaced; an empty file may be.

    `is_ours` gets the first 2,000 bytes of a file as text; `kind` names the expected content in the message.
    """
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode):  # to open a pipe would wait for its other end
            what = _KINDS.get(stat.S_IFMT(mode), "a device")
            raise ConflictError(f"{flag} is {path}, which is {what}, not a file: name another file.")
        with path.open("rb") as file:
            start = file.read(2000).decode("utf-8", "replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConflictError(
            f"{flag} is {path}, which cannot be written ({error.strerror}): name another file."
        ) from None
    if start and not is_ours(start):
        raise ConflictError(f"{flag} is {path}, which exists and is no {kind}: name another file.")


def publish(draft: Path, path: Path) -> None:
    """Rename a finished file to `path`, durably. Raises OSError."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(data: bytes | str) -> Any:
    """The values in JSON that this process did not write, which any of its code can then print, store and calculate
    with.

    Raises ValueError for damaged JSON, and for nesting, integers and texts that Python reads and cannot handle later.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_plain(value, _MOST_LEVELS)
    return value


def _check_plain(value: Any, levels: int) -> None:
    if isinstance(value, str):
        value.encode()  # a UnicodeEncodeError, which is a ValueError, for half of a surrogate pair
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("it has an integer of more than 64 bits")
    elif isinstance(value, dict | list):
        if levels == 0:
            raise ValueError("it is nested too deeply")
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_plain(each, levels - 1)


def shown_number(value: Any) -> Any:
    """A value from such JSON if it is a number that can be shown, finite and with 15 digits at most, and else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 1e15 else None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing, unreadable, damaged or holds anything else."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def size_of_source(source: Path | bytes) -> int:
    """The bytes of what is stored. Raises as `disk_errors` does."""
    if isinstance(source, bytes):
        return len(source)
    with disk_errors(source, missing=f"{source} does not exist: check the path."):
        return source.stat().st_size


def sha256_of(path: Path, between: Callable[[], None] = lambda: None) -> str:
    """Hexadecimal SHA-256 of a file; `between` is called after each block and may raise. Raises OSError."""
    return sha256_of_blocks(read_blocks(path), between)


def sha256_of_blocks(blocks: Iterable[bytes], between: Callable[[], None] = lambda: None) -> str:
    """Hexadecimal SHA-256 of the concatenated blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        between()
    return digest.hexdigest()


def read_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, 4 MiB at a time. Raises OSError."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_SIZE):
            yield block
