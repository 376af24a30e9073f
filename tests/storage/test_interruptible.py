"""Requests to a silent server, abandoned when the job is to stop."""

from pathlib import Path

import pytest

from inat_job.errors import PreconditionFailed, Preempted
from inat_job.storage import Entry, StorageOptions, open_store
from inat_job.storage.base import Role
from inat_job.storage.interruptible import InterruptibleStore

VERBS = {
    "stat": lambda store, path: store.stat("key"),
    "read": lambda store, path: store.read("key"),
    "range": lambda store, path: store.read_range(Entry("key", 9, '"v"'), 0, 9),
    "get": lambda store, path: store.get("key", path),
    "list": lambda store, path: list(store.list()),
    "put": lambda store, path: store.put("key", b"x"),
    "parts": lambda store, path: store.put("key", bytes(20 * 2**20)),
    "delete": lambda store, path: store.delete("key"),
    "drafts": lambda store, path: store.delete_drafts(lambda key: True),
}
CASES = [("https", verb) for verb in ("stat", "read", "range", "get")]
CASES += [(kind, verb) for kind in ("data", "output") for verb in VERBS]


@pytest.mark.parametrize(("kind", "verb"), CASES)
def test_stop_ends_a_request_in_every_phase(
    silent_address: str, kind: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag is read ten times a second; the request itself takes 5 s or longer, and is retried."""
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", silent_address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    polls = 0

    def stop() -> bool:
        nonlocal polls
        polls += 1
        return polls > 5

    uri = silent_address if kind == "https" else "s3://bucket/run"
    role: Role = "output" if kind == "output" else "data"
    store = InterruptibleStore(open_store(uri, StorageOptions(), role=role), stop)
    with pytest.raises(Preempted):
        VERBS[verb](store, tmp_path / "x")
    assert polls == 6


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
