"""Requests to a silent server, abandoned when the job is to stop."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from inat_job.errors import PreconditionFailed, Preempted
from inat_job.storage import open_store
from inat_job.storage.interruptible import InterruptibleStore


class SilentStore:
    """A store that never answers."""

    uri = "s3://silent"

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: time.sleep(30)


@pytest.mark.parametrize(
    "verb",
    [
        lambda store: store.stat("key"),
        lambda store: store.read("key"),
        lambda store: list(store.list()),
        lambda store: store.put("key", b""),
        lambda store: store.delete("key"),
    ],
)
def test_stop_abandons_every_verb(verb: Any) -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    start = time.monotonic()
    with pytest.raises(Preempted, match="waiting for s3://silent"):
        verb(InterruptibleStore(SilentStore(), stop.is_set))  # type: ignore[arg-type]
    assert time.monotonic() - start < 5


def test_passes_requests_through(tmp_path: Path) -> None:
    store = InterruptibleStore(open_store(str(tmp_path / "store")), lambda: False)
    entry = store.put("a/key", b"data", if_none_match=True)
    assert (store.stat("a/key"), store.read("a/key"), list(store.list("a/"))) == (entry, b"data", [entry])
    assert store.get("a/key", tmp_path / "copy") == entry
    with pytest.raises(PreconditionFailed):
        store.put("a/key", b"other", if_none_match=True)
    store.delete("a/key")
    assert store.stat("a/key") is None


def test_stop_during_get(tmp_path: Path) -> None:
    inner = open_store(str(tmp_path / "store"))
    inner.put("key", b"data")
    with pytest.raises(Preempted):
        InterruptibleStore(inner, lambda: True).get("key", tmp_path / "copy")
