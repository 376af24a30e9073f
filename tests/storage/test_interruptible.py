"""Requests that are given up when the job is to stop, though the server says nothing."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from inat_job.errors import PreconditionFailed, Preempted
from inat_job.storage import open_store
from inat_job.storage.interruptible import Interruptible


class Silent:
    """A store that answers nothing."""

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
def test_every_verb_is_given_up(verb: Any) -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(Preempted, match="s3://silent was asked"):
        verb(Interruptible(Silent(), stop.is_set))  # type: ignore[arg-type]
    assert time.monotonic() - begun < 5


def test_it_is_the_store_otherwise(tmp_path: Path) -> None:
    store = Interruptible(open_store(str(tmp_path / "store")), lambda: False)
    entry = store.put("a/key", b"data", if_none_match=True)
    assert (store.stat("a/key"), store.read("a/key"), list(store.list("a/"))) == (entry, b"data", [entry])
    assert store.get("a/key", tmp_path / "copy") == entry
    with pytest.raises(PreconditionFailed):
        store.put("a/key", b"other", if_none_match=True)
    store.delete("a/key")
    assert store.stat("a/key") is None


def test_a_pull_is_stopped_too(tmp_path: Path) -> None:
    inner = open_store(str(tmp_path / "store"))
    inner.put("key", b"data")
    with pytest.raises(Preempted):
        Interruptible(inner, lambda: True).get("key", tmp_path / "copy")
