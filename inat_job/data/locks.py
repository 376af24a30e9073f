"""What jobs need that share a cache folder: locks, writes in one step, and one error for a folder that takes none."""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inat_job import events, signals
from inat_job.errors import BadDataError, ConflictError
from inat_job.signals import Stop
from inat_job.storage import Store
from inat_job.storage.disk import FULL
from inat_job.storage.landing import Landing


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
    """Hold the file's lock, which the system lets go of whatever becomes of its holder.

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
    landing: Landing | None = None,
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
    store: Store, key: str, path: Path, stop: Stop, what: str, sha256: str | None, landing: Landing | None
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
