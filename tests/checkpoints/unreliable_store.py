"""A run on S3 whose store fails, hangs or slows down on demand; its checkpoints and what is stored of them."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from inat_job.checkpoints.manifest import Manifest
from inat_job.checkpoints.training_state import Write
from inat_job.errors import JobError
from inat_job.storage import Store
from inat_job.storage.fenced import FencedStore
from inat_job.storage.run_folder import RunFolder

GRACE_S = 30.0
SCORES = st.lists(st.one_of(st.none(), st.integers(0, 5).map(lambda tenth: tenth / 10)), max_size=12)
"""Validation accuracies of successive checkpoints, None where one was not validated."""


class UnreliableStore:
    """A store that raises `error` if it is set, and waits while `gate` is closed; `calls` are its puts and deletes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.uri = store.uri
        self.error: JobError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, source: Any, **options: Any) -> Any:
        self.gate.wait(20)
        if options.get("progress"):
            options.pop("progress")(0, 1)
        if self.error:
            raise self.error
        self.calls.append(key)
        return self._store.put(key, source, **options)

    def delete(self, key: str) -> None:
        self.calls.append(f"-{key}")
        self._store.delete(key)


def store_of(folder: RunFolder) -> UnreliableStore:
    store = folder.background._store if isinstance(folder.background, FencedStore) else folder.background
    assert isinstance(store, UnreliableStore)
    return store


def manifest(step: int, accuracy: float | None = None, **changes: Any) -> Manifest:
    loss = None if accuracy is None else 1.0
    accuracies = [] if accuracy is None else [accuracy]
    return Manifest(step, 1, accuracy, loss, accuracies, accuracy is None, "", "d", "s", 1.0, None, **changes)


def manifests_of(scores: list[float | None]) -> list[Manifest]:
    """A manifest for each score; the step is its position."""
    return [manifest(step, score, sha256="0" * 64, size=7) for step, score in enumerate(scores)]


def copies(data: bytes) -> Callable[[], Write]:
    """A state to save, whose file is `data`."""

    def write(path: Path) -> tuple[str, int]:
        path.write_bytes(data)
        return hashlib.sha256(data).hexdigest(), len(data)

    return lambda: write


def stored_keys(folder: RunFolder) -> list[str]:
    return [entry.key for entry in folder.store.list("checkpoints/")]


def stored_steps(folder: RunFolder) -> set[int]:
    names = [key.removeprefix("checkpoints/") for key in stored_keys(folder) if key.endswith(".ckpt")]
    return {int(name.removesuffix(".ckpt")) for name in names}


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
