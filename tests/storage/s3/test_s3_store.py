"""S3 behind a proxy that fails, and the requests that the store sends."""

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from inat_job import errors
from inat_job.storage import StorageOptions, open_store, partial_download, retry
from inat_job.storage.partial_download import ChunkPlan
from tests.storage.conftest import S3Proxy

OPTIONS = StorageOptions(threads=4, retries=2)
ONCE = StorageOptions(retries=0)
DATA = os.urandom(500_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
REAL = "INAT_TEST_S3_ENDPOINT" in os.environ


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_download, "plan_chunks", lambda size: ChunkPlan(size, 100_000))
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)


@pytest.mark.parametrize("fault", ["truncate", "lose", "503"])
def test_reads_survive_faults(s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path, fault: str) -> None:
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    store.put("key", DATA)
    s3_proxy.faults["GET"] = [fault]
    assert store.read("key") == DATA
    s3_proxy.faults["GET"] = [fault, "", fault]
    store.get("key", tmp_path / "key", sha256=SHA256)
    assert (tmp_path / "key").read_bytes() == DATA


@pytest.mark.parametrize("fault", ["status 200", "other range", "other etag", "page"])
def test_another_answer_than_the_range_asked_for_is_not_believed(
    s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path, fault: str
) -> None:
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    entry = store.put("key", DATA)
    s3_proxy.faults["GET"] = ["", fault, "", fault]
    store.get("key", tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == DATA
    s3_proxy.faults["GET"] = [fault]
    with contextlib.suppress(errors.PreconditionFailed):
        assert store.read_range(entry, 0, 1000) == DATA[:1000]


@pytest.mark.parametrize("times", [1, 2])
def test_flipped_byte_is_found_without_a_digest(s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path, times: int) -> None:
    store = open_store(f"s3://{s3_bucket}", StorageOptions(threads=1, retries=2))
    store.put("key", DATA)
    s3_proxy.faults["GET"] = [*["other byte", "", "", "", ""][:5], *["", "other byte", "", "", ""] * (times - 1)]
    store.get("key", tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == DATA
    s3_proxy.faults["GET"] = ["other byte"]
    assert store.read("key") == DATA


def test_lasting_wrong_answers_end_as_transient(s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}", OPTIONS)
    store.put("key", DATA)
    s3_proxy.faults = {"GET": ["page"] * 100}
    for verb in (lambda: store.get("key", tmp_path / "key"), lambda: store.read("key")):
        with pytest.raises(errors.TransientError, match="check"):
            verb()
    s3_proxy.faults = {"HEAD": ["page"] * 100}
    with pytest.raises(errors.TransientError, match="did not answer like S3 for key despite retries"):
        store.stat("key")


def test_each_thread_has_its_own_retries(
    s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's retries share a quota of 35, which many threads use up at once."""
    monkeypatch.setattr(retry, "LONGEST_WAIT_S", 0.05)
    store = open_store(f"s3://{s3_bucket}", StorageOptions(threads=5, retries=30))
    store.put("key", DATA)
    s3_proxy.faults["GET"] = ["503"] * 60
    store.get("key", tmp_path / "key", sha256=SHA256)
    s3_proxy.faults = {method: ["503"] * 12 for method in ("GET", "HEAD", "PUT", "DELETE")}
    assert store.stat("key") is not None
    assert [entry.key for entry in store.list()] == ["key"]
    store.put("other", b"x")
    store.delete("other")


def test_resume_requests_only_missing_chunks(s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}", StorageOptions(threads=1, retries=0))
    store.put("key", DATA)
    s3_proxy.faults["GET"] = ["", "", "503"]
    with pytest.raises(errors.TransientError):
        store.get("key", tmp_path / "key")
    s3_proxy.seen.clear()
    store.get("key", tmp_path / "key", sha256=SHA256)
    assert [method for method, _ in s3_proxy.seen].count("GET") == 3


def test_403_is_never_missing(s3_proxy: S3Proxy, s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}/run", OPTIONS)
    s3_proxy.faults = {method: ["403"] * 9 for method in ("GET", "HEAD", "PUT", "DELETE")}
    verbs = (
        lambda: store.stat("key"),
        lambda: store.read("key"),
        lambda: store.get("key", tmp_path / "key"),
        lambda: store.put("key", b""),
        lambda: store.delete("key"),
        lambda: list(store.list()),
    )
    for verb in verbs:
        with pytest.raises(errors.NoPermissionError, match=f"No permission for s3://{s3_bucket}/run"):
            verb()


def test_retries_run_out(s3_proxy: S3Proxy, s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}", StorageOptions(retries=1))
    s3_proxy.faults["HEAD"] = ["503"] * 9
    with pytest.raises(errors.TransientError, match="503"):
        store.stat("key")
    assert len(s3_proxy.seen) == 2


def test_missing_bucket(s3_endpoint: object, tmp_path: Path) -> None:
    address = "s3://inat-no-such-bucket/run"
    data, output = open_store(address, ONCE), open_store(address, ONCE, role="output")
    for store, kind in ((data, errors.BadDataError), (output, errors.ConflictError)):
        for verb in (
            lambda s=store: s.stat("key"),
            lambda s=store: s.read("key"),
            lambda s=store: s.get("key", tmp_path / "key"),
            lambda s=store: list(s.list()),
        ):
            with pytest.raises(kind, match=r"ucket inat-no-such-bucket .*does not exist"):
                verb()
        with pytest.raises(errors.ConflictError, match="Output bucket inat-no-such-bucket does not exist: create it"):
            store.put("key", b"")


def test_missing_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(errors.NoPermissionError, match="AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{s3_bucket}", ONCE).stat("key")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    with pytest.raises(errors.NoPermissionError):
        open_store(f"s3://{s3_bucket}", ONCE).stat("key")


@pytest.mark.skipif(not REAL, reason="moto takes any secret")
def test_wrong_secret(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(f"s3://{s3_bucket}", ONCE)
    for verb in (lambda: store.stat("key"), lambda: store.read("key"), lambda: store.put("key", b"")):
        with pytest.raises(errors.NoPermissionError) as caught:
            verb()
        assert "wrong" not in str(caught.value)


def test_connection_refused(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, closed_port: int, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    store = open_store(f"s3://{s3_bucket}", ONCE)
    for verb in (lambda: store.stat("k"), lambda: store.put("k", b""), lambda: store.get("k", tmp_path / "k")):
        with pytest.raises(errors.TransientError, match=f"127.0.0.1:{closed_port} did not serve"):
            verb()


def test_unknown_host(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")
    with pytest.raises(errors.TransientError, match=r"nowhere\.invalid"):
        open_store(f"s3://{s3_bucket}", ONCE).stat("k")


def test_options_apply_to_every_request(s3_proxy: S3Proxy, s3_bucket: str) -> None:
    options = StorageOptions(sse_kms_key_id="alias/k", requester_pays=True, retries=0)
    sent: list[tuple[str, dict[str, object]]] = []
    store = open_store(f"s3://{s3_bucket}", options)
    events = store._client.meta.events  # type: ignore[attr-defined]
    events.register("before-parameter-build.s3", lambda params, model, **_: sent.append((model.name, dict(params))))
    if REAL:
        pytest.skip("no KMS behind it")
    store.put("key", b"x")
    store.read("key")
    list(store.list())
    store.delete("key")
    assert {name for name, _ in sent} >= {"PutObject", "HeadObject", "GetObject", "ListObjectsV2", "DeleteObject"}
    assert all(params["RequestPayer"] == "requester" for _, params in sent)
    assert sent[0][1]["SSEKMSKeyId"] == "alias/k"
    assert sent[0][1]["ServerSideEncryption"] == "aws:kms"
    config = store._client.meta.config  # type: ignore[attr-defined]
    assert (config.s3["addressing_style"], config.request_checksum_calculation) == ("path", "when_required")


def test_anonymous_requests_are_unsigned(s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}", StorageOptions(anonymous=True, retries=0))
    signed: list[str] = []
    events = store._client.meta.events  # type: ignore[attr-defined]
    events.register("before-send.s3", lambda request, **_: signed.append(str(request.headers.get("Authorization"))))
    with contextlib.suppress(errors.JobError):
        store.read("missing")
    assert signed == ["None"]


def test_client_settings_for_amazon(monkeypatch: pytest.MonkeyPatch, s3_endpoint: object) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    store = open_store("s3://bucket", OPTIONS)
    config = store._client.meta.config  # type: ignore[attr-defined]
    assert config.request_checksum_calculation == "when_supported"
    assert (config.connect_timeout, config.read_timeout, config.retries["mode"]) == (10, 30, "standard")
    assert config.retries["total_max_attempts"] == 1  # the job retries by itself
