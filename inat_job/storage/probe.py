"""Whether a store takes what a run will do to it: a small object is written, also conditionally, read and deleted."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from inat_job.errors import ConflictError, JobError, PreconditionFailed, TransientError
from inat_job.storage.base import Store
from inat_job.storage.local import LocalStore


def probe(store: Store) -> bool:
    """Do it, and leave nothing behind; whether the store heeds the condition that an object must not exist yet.

    Raises what its verbs raise, of which the lack of any would end a run sooner or later.
    """
    key, data = f"preflight-{secrets.token_hex(6)}.tmp", secrets.token_bytes(32)
    with _no_folder_left(store):
        try:
            conditional = _written(store, key, data)
            if store.read(key) != data:
                raise TransientError(f"{store.uri}/{key} was read otherwise than it was written: check the store.")
        except BaseException:
            with contextlib.suppress(JobError):  # what came first is told
                store.delete(key)
            raise
        store.delete(key)
    return conditional


def _written(store: Store, key: str, data: bytes) -> bool:
    try:
        store.put(key, data, if_none_match=True)
        store.put(key, data, if_none_match=True)  # which a store that heeds it refuses
    except PreconditionFailed:
        return True
    except ConflictError:  # one that knows of no such condition and says so, or a missing bucket, which this tells
        store.put(key, data)
    return False


@contextlib.contextmanager
def _no_folder_left(store: Store) -> Iterator[None]:
    """Remove the folders that writing into a local store had to make, as far as they are empty."""
    made: list[Path] = []
    if isinstance(store, LocalStore):
        made = [folder for folder in (store.root, *store.root.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
