"""Which folders of the cache are in use: a job holds what it reads, by a lock that ends with it however it ends, and
who deletes takes a folder only when nobody holds it.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


class Hold:
    """A folder that is not deleted as long as this lives, or its process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def hold(folder: Path) -> Hold | None:
    """Hold a folder, and note that it was used now; None if it isn't there any more, or cannot be locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    held = Hold(descriptor)
    with contextlib.suppress(OSError):  # as on a file system that has no such locks, where none can be taken either
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    with contextlib.suppress(OSError):  # a cache that is complete may be read only
        os.utime(descriptor)
    return held if _is_still(folder, descriptor) else None


def is_free(folder: Path, locks: tuple[Path, ...] = ()) -> bool:
    """Whether nobody holds the folder, or one of these files' locks."""
    with _taken(folder, locks) as free:
        return free


def delete(folder: Path, locks: tuple[Path, ...] = ()) -> Path | None:
    """Take a folder out of the others' sight, under a name that is returned, unless somebody holds it or these locks.

    Who holds it finds it whole, and who comes later finds none. Raises OSError.
    """
    with _taken(folder, locks) as free:
        if not free:
            return None
        away = folder.with_name(f"{GONE}{secrets.token_hex(8)}")
        folder.rename(away)
        return away


GONE = ".gone-"
"""How the names of folders begin that are being deleted."""


@contextmanager
def _taken(folder: Path, locks: tuple[Path, ...]) -> Iterator[bool]:
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
