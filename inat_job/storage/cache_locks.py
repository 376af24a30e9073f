"""Locks on the cache folders that several jobs share, and downloads into them.

A job locks the folders it reads; the lock ends with the process, however that ends. Pruning deletes a folder only if no
job holds it.
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
from inat_job.storage.disk import DISK_FULL, open_unlinked
from inat_job.storage.partial_download import PartialDownload

DELETED_PREFIX = ".gone-"
"""Prefix of the names of folders that are being deleted."""

_DOWNLOADS = 3
"""Downloads of an object before a wrong SHA-256 is blamed on the object: the network may damage bytes too."""

_TICK_S = 0.2


@contextmanager
def cache_errors(cache_dir: Path) -> Iterator[None]:
    """Translate an OSError into a ConflictError that names `--cache-dir`."""
    try:
        yield
    except OSError as error:
        fix = "free some space, or choose another folder" if error.errno in DISK_FULL else "choose another folder"
        raise ConflictError(f"--cache-dir {cache_dir} cannot be written ({error.strerror}): {fix}.") from error


@contextmanager
def lock(path: Path, cache_dir: Path, stop: Stop, doing: str) -> Iterator[None]:
    """Hold the file's exclusive lock, which the system releases however its holder ends.

    Raises ConflictError if the file cannot be created, Preempted with `doing` when `stop` turns true while waiting.
    """
    with cache_errors(cache_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_unlinked(path, "a")
    with file:
        while not _try_lock(file.fileno(), cache_dir):
            signals.check(stop, doing)
            time.sleep(_TICK_S)
        yield


def _try_lock(descriptor: int, cache_dir: Path) -> bool:
    with cache_errors(cache_dir):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def fetch(
    store: Store,
    key: str,
    path: Path,
    cache_dir: Path,
    stop: Stop,
    *,
    what: str,
    refresh: bool = False,
    sha256: str | None = None,
    incoming: PartialDownload | None = None,
) -> Path:
    """`path`, holding the object: of several jobs at once, one downloads it and the others wait for it.

    `what` labels the progress bar, `refresh` downloads the object even if the file exists, `sha256` is checked on a
    download, and `incoming` lets the object be read meanwhile. Raises ConflictError if the folder cannot be written,
    Preempted, BadDataError for another SHA-256, and what the store raises.
    """
    with cache_errors(cache_dir):
        if path.exists() and not refresh:
            return path
    lock_path = path.with_name(f"{path.name}.lock")
    with lock(lock_path, cache_dir, stop, f"waiting for another job that downloads {path.name}"):
        for left in reversed(range(_DOWNLOADS if refresh or not path.exists() else 0)):
            try:
                store.get(key, path, sha256=sha256, progress=events.progress(what), stop=stop, incoming=incoming)
                break
            except BadDataError as error:
                if not left or sha256 is None:
                    raise
                events.warn(f"Downloading it again: {error}")
    return path


class FolderHold:
    """A shared lock on a folder, which is not deleted as long as this object and its process live."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def hold_folder(folder: Path) -> FolderHold | None:
    """Hold a folder and update its time of last use; None if it no longer exists or cannot be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    held = FolderHold(descriptor)
    with contextlib.suppress(OSError):  # a file system without such locks, on which no job can take one
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    with contextlib.suppress(OSError):  # a complete cache may be read only
        os.utime(descriptor)
    return held if _is_still(folder, descriptor) else None


def is_free(folder: Path, locks: tuple[Path, ...] = ()) -> bool:
    """Whether no job holds the folder or one of these lock files."""
    with _locked_if_free(folder, locks) as free:
        return free


def delete(folder: Path, locks: tuple[Path, ...] = ()) -> Path | None:
    """Rename a folder out of the way, to a name that is returned, unless a job holds it or one of these lock files.

    A job that holds the folder finds it complete, and a later one finds none. Raises OSError.
    """
    with _locked_if_free(folder, locks) as free:
        if not free:
            return None
        renamed = folder.with_name(f"{DELETED_PREFIX}{secrets.token_hex(8)}")
        folder.rename(renamed)
        return renamed


@contextmanager
def _locked_if_free(folder: Path, locks: tuple[Path, ...]) -> Iterator[bool]:
    """Whether the folder and all the lock files are locked within the block; a missing lock file counts as free."""
    with ExitStack() as stack:
        free = True
        for path in (folder, *locks):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError:  # another user's, whose job may be using it
                free = False
                continue
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # held, or unknown
                free = False
        yield free


def _is_still(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        return False
