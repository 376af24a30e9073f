"""Checks that a store accepts what a run will do to it: conditional and plain writes, a read and a delete."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from inat_job.errors import ConflictError, JobError, PreconditionFailed, TransientError
from inat_job.storage.base import Store
from inat_job.storage.local import LocalStore


def probe(store: Store) -> bool:
    """Write, read and delete a small object; returns whether the store honours conditional writes.

    Leaves nothing behind. Raises what the verbs raise, any of which would end a run sooner or later.
    """
    key, data = f"preflight-{secrets.token_hex(6)}.tmp", secrets.token_bytes(32)
    with _made_folders_removed(store):
        try:
            conditional = create(store, key, data)
            if store.read(key) != data:
                raise TransientError(f"{store.uri}/{key} does not read as it was written: check the store.")
        except BaseException:
            with contextlib.suppress(JobError):  # the first error is the one to report
                store.delete(key)
            raise
        store.delete(key)
    return conditional


def create(store: Store, key: str, data: bytes) -> bool:
    """Write an object unless it exists; returns whether the store honours that condition.

    On a store that ignores or refuses the condition, the object is overwritten.
    """
    try:
        store.put(key, data, if_none_match=True)
        store.put(key, data, if_none_match=True)  # refused by a store that honours the condition
    except PreconditionFailed:
        return True
    except ConflictError:  # the store refuses the condition by name; or has no such bucket, as the next line reports
        store.put(key, data)
    return False


@contextlib.contextmanager
def _made_folders_removed(store: Store) -> Iterator[None]:
    """Remove the folders that writing into a local store created, if they are empty."""
    made: list[Path] = []
    if isinstance(store, LocalStore):
        made = [folder for folder in (store.root, *store.root.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
