"""The check of a store before a job: a folder, and S3, moto's or the server that the environment names."""

import os
from pathlib import Path

import pytest

from inat_job.errors import ConflictError, NoPermissionError, TransientError
from inat_job.storage import StorageOptions, Store, open_store
from inat_job.storage.local import LocalStore
from inat_job.storage.probe import probe
from tests.storage.conftest import S3Proxy

OPTIONS = StorageOptions(retries=0)
REAL = "INAT_TEST_S3_ENDPOINT" in os.environ


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("existing", ["", "a/b", "a/b/other"])
def test_probe_leaves_folder_unchanged(tmp_path: Path, existing: str) -> None:
    if existing:
        (tmp_path / existing).mkdir(parents=True)
    before = tree(tmp_path)
    assert probe(open_store(str(tmp_path / "a/b"), OPTIONS))
    assert tree(tmp_path) == before


def test_probe_leaves_bucket_unchanged(s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}/runs/r", OPTIONS, role="output")
    store.put("kept", b"x")
    assert probe(store)
    assert [entry.key for entry in store.list()] == ["kept"]


class UnconditionalStore(LocalStore):
    """A store without conditional writes: it ignores the condition, or refuses it by name."""

    refuses = False

    def put(self, key: str, source: Path | bytes, **asked: object) -> object:  # type: ignore[override]
        if self.refuses and asked.get("if_none_match"):
            raise ConflictError("The store refused the request: check.")
        return super().put(key, source)


@pytest.mark.parametrize("refuses", [True, False])
def test_probe_store_without_conditional_writes(tmp_path: Path, refuses: bool) -> None:
    store = UnconditionalStore(tmp_path / "s", OPTIONS)
    store.refuses = refuses
    assert not probe(store)
    assert tree(tmp_path) == []


def test_probe_missing_bucket_is_conflict(s3_bucket: str) -> None:
    with pytest.raises(ConflictError, match="does not exist"):
        probe(open_store(f"s3://{s3_bucket}-missing/runs", OPTIONS, role="output"))


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_probe_finds_forbidden_verb(s3_proxy: S3Proxy, s3_bucket: str, method: str) -> None:
    s3_proxy.faults[method] = ["403"]
    store = open_store(f"s3://{s3_bucket}", OPTIONS, role="output")
    with pytest.raises(NoPermissionError, match=s3_bucket):
        probe(store)
    s3_proxy.faults.clear()
    left = list(store.list())
    assert len(left) == (method == "DELETE")  # the object that may not be deleted, which the error names


def test_probe_detects_wrong_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = open_store(str(tmp_path), OPTIONS)
    monkeypatch.setattr(type(store), "read", lambda self, key: b"other")
    with pytest.raises(TransientError, match="does not read as it was written"):
        probe(store)
    assert tree(tmp_path) == []


@pytest.mark.skipif(not REAL, reason="moto checks no secret; run tests/storage/with_radosgw.sh")
def test_probe_wrong_secret(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(NoPermissionError):
        probe(open_store(f"s3://{s3_bucket}", OPTIONS, role="output"))
