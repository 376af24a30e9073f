"""Locks on folders of the cache that several jobs share, and atomic writes to it.

A job locks what it reads; the lock ends with the process, however that ends. Pruning deletes a folder only when no job
holds it.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from inat_job import events, signals
from inat_job.errors import BadDataError, ConflictError
from inat_job.signals import Stop
from inat_job.storage import Store
from inat_job.storage.disk import FULL
from inat_job.storage.partial_download import PartialDownload


@contextmanager
def cache_errors(cache_dir: Path) -> Iterator[None]:
    """Turn an OSError into the ConflictError that names `--cache-dir`."""
    try:
        yield
    except OSError as error:
        mend = "free some of it, or name another" if error.errno in FULL else "name another"
        raise ConflictError(f"--cache-dir {cache_dir} cannot be written ({error.strerror}): {mend}.") from error


@contextmanager
def lock(path: Path, cache_dir: Path, stop: Stop, waiting: str) -> Iterator[None]:
    """FolderHold the file's lock, which the system lets go of whatever becomes of its holder.

    Raises ConflictError when the file cannot be made, Preempted when `stop` turns true while `waiting`.
    """
    with cache_errors(cache_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        while not _taken(file.fileno(), cache_dir):
            signals.check(stop, waiting)
            time.sleep(0.2)
        yield


def write(path: Path, data: bytes) -> None:
    """Let `path` hold `data`, in one step, though others do the same at the same time. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


_FETCHES = 3
"""Times that an object is fetched until its bytes are believed to be others: the way here may damage them."""


def fetch(
    store: Store,
    key: str,
    path: Path,
    cache_dir: Path,
    stop: Stop,
    *,
    what: str,
    anew: bool = False,
    sha256: str | None = None,
    landing: PartialDownload | None = None,
) -> Path:
    """`path`, holding the object: of the jobs that ask at once one fetches it, the others wait and find it.

    `anew` fetches it even if it is there; `sha256` is what it must be when it is fetched, and `landing` lets it be
    read meanwhile. Raises ConflictError when the folder cannot be written, Preempted, BadDataError for other bytes, and
    what the store raises.
    """
    with cache_errors(cache_dir):
        if path.exists() and not anew:
            return path
    with lock(
        path.with_name(f"{path.name}.lock"), cache_dir, stop, f"waiting for another job that fetches {path.name}"
    ):
        if anew or not path.exists():
            _get(store, key, path, stop, what, sha256, landing)
    return path


def _get(
    store: Store, key: str, path: Path, stop: Stop, what: str, sha256: str | None, landing: PartialDownload | None
) -> None:
    for left in reversed(range(_FETCHES)):
        try:
            store.get(key, path, sha256=sha256, progress=events.progress(what), stop=stop, landing=landing)
            return
        except BadDataError as error:
            if not left or sha256 is None:
                raise
            events.warn(f"It is fetched again: {error}")


def _taken(handle: int, cache_dir: Path) -> bool:
    with cache_errors(cache_dir):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class FolderHold:
    """A folder that is not deleted as long as this lives, or its process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def hold_folder(folder: Path) -> FolderHold | None:
    """FolderHold a folder, and note that it was used now; None if it isn't there any more, or cannot be locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    held = FolderHold(descriptor)
    with contextlib.suppress(OSError):  # as on a file system that has no such locks, where none can be taken either
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    with contextlib.suppress(OSError):  # a cache that is complete may be read only
        os.utime(descriptor)
    return held if _is_still(folder, descriptor) else None


def is_free(folder: Path, locks: tuple[Path, ...] = ()) -> bool:
    """Whether nobody holds the folder, or one of these files' locks."""
    with _in_use(folder, locks) as free:
        return free


def delete(folder: Path, locks: tuple[Path, ...] = ()) -> Path | None:
    """Take a folder out of the others' sight, under a name that is returned, unless somebody holds it or these locks.

    Who holds it finds it whole, and who comes later finds none. Raises OSError.
    """
    with _in_use(folder, locks) as free:
        if not free:
            return None
        away = folder.with_name(f"{GONE}{secrets.token_hex(8)}")
        folder.rename(away)
        return away


GONE = ".gone-"
"""How the names of folders begin that are being deleted."""


@contextmanager
def _in_use(folder: Path, locks: tuple[Path, ...]) -> Iterator[bool]:
    """Whether the folder and all the locks are taken within the block; a lock's file that isn't there is free."""
    with ExitStack() as stack:
        free = True
        for path in (folder, *locks):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError:  # another user's, who may be at work in it
                free = False
                continue
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # held, or nobody can tell
                free = False
        yield free


def _is_still(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        return False
