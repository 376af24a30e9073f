"""Uploads to S3: conditions, parts, verification."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job import errors
from inat_job.storage import StorageOptions, open_store, partial_download, retry
from inat_job.storage.partial_download import ChunkPlan
from inat_job.storage.s3 import multipart_upload
from inat_job.storage.s3.multipart_upload import plan_parts
from tests.storage.conftest import S3Proxy

OPTIONS = StorageOptions(threads=4, retries=2)
ONCE = StorageOptions(retries=0)
DATA = os.urandom(500_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_download, "plan_chunks", lambda size: ChunkPlan(size, 100_000))
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)


@pytest.mark.parametrize("size", [10, 6 * 2**20])
def test_conditional_put_succeeds_after_lost_answer(
    s3_proxy: S3Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The first request stores the object but its answer is lost, and the retry finds the object there."""
    monkeypatch.setattr(multipart_upload, "SINGLE_REQUEST_LIMIT", 5 * 2**20)
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    s3_proxy.faults["PUT" if size == 10 else "POST"] = ["lose"] if size == 10 else ["", "lose"]
    entry = store.put("key", b"x" * size, if_none_match=True)
    assert store.stat("key") == entry
    with pytest.raises(errors.PreconditionFailed):
        store.put("key", b"x" * size, if_none_match=True)


def test_conflict_409_is_retried(s3_proxy: S3Proxy, s3_bucket: str) -> None:
    s3_proxy.faults["PUT"] = ["409"]
    s3_proxy.codes["409"] = "ConditionalRequestConflict"
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    assert store.put("key", b"x", if_none_match=True) == store.stat("key")


def test_failed_part_aborts_upload(s3_proxy: S3Proxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart_upload, "SINGLE_REQUEST_LIMIT", 5 * 2**20)
    monkeypatch.setattr(multipart_upload, "PART_SIZE", 5 * 2**20)
    store = open_store(f"s3://{s3_bucket}", ONCE)
    s3_proxy.faults["PUT"] = ["", "403"]
    with pytest.raises(errors.NoPermissionError):
        store.put("key", bytes(11 * 2**20))
    assert [method for method, path in s3_proxy.seen].count("DELETE") == 1
    assert store.stat("key") is None


def test_short_object_is_detected(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://{s3_bucket}", ONCE)
    monkeypatch.setattr(multipart_upload, "size_of_source", lambda source: 7)
    with pytest.raises(errors.TransientError, match=r"holds .* bytes, not the 7 sent"):
        store.put("key", Path(__file__))


@pytest.mark.parametrize("condition", [{}, {"if_none_match": True}])
@pytest.mark.parametrize("size", [len(DATA), 11 * 2**20])
def test_damaged_upload_is_detected_and_retried(
    s3_proxy: S3Proxy,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    size: int,
    condition: dict[str, bool],
) -> None:
    """By the server, or by the job if the server does not check Content-MD5, like moto."""
    monkeypatch.setattr(multipart_upload, "SINGLE_REQUEST_LIMIT", 5 * 2**20)
    monkeypatch.setattr(multipart_upload, "PART_SIZE", 5 * 2**20)
    data = (DATA * 23)[:size]
    s3_proxy.faults["PUT"] = ["flip"]
    with pytest.raises(errors.JobError):
        open_store(f"s3://{s3_bucket}", ONCE).put("key", data, **condition)  # type: ignore[arg-type]
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    assert store.stat("key") is None
    s3_proxy.faults["PUT"] = ["", "flip"] if size > len(DATA) else ["flip"]
    assert store.put("key", data, **condition).size == len(data)  # type: ignore[arg-type]
    store.get("key", tmp_path / "key", sha256=hashlib.sha256(data).hexdigest())


def test_etag_without_md5_is_no_damage(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(multipart_upload.Upload, "_expected_tag", lambda upload: "another kind")
    store = open_store(f"s3://{s3_bucket}", ONCE)
    (tmp_path / "file").write_bytes(DATA)
    assert store.put("bytes", DATA).size == store.put("file", tmp_path / "file").size == len(DATA)


@given(st.integers(0, 5 * 2**40))
def test_plan_parts_makes_at_most_10000(size: int) -> None:
    parts = plan_parts(size)
    assert parts.chunk >= 16 * 2**20
    assert parts.count <= 10_000
    assert size == 0 or parts.span(parts.count - 1)[1] == size
