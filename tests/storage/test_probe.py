"""What a look before a job does with stores: a folder, and S3, moto's or the real one that the environment names."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inat_job.errors import ConflictError, NoPermissionError, TransientError, UsageError
from inat_job.storage import StorageOptions, Store, open_store
from inat_job.storage.local import LocalStore
from inat_job.storage.probe import probe
from inat_job.storage.s3 import account
from tests.storage.conftest import Proxy

OPTIONS = StorageOptions(retries=0)
REAL = "INAT_TEST_S3_ENDPOINT" in os.environ


def tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("there", ["", "a/b", "a/b/other"])
def test_a_folder_is_left_as_it_was(tmp_path: Path, there: str) -> None:
    if there:
        (tmp_path / there).mkdir(parents=True)
    before = tree(tmp_path)
    assert probe(open_store(str(tmp_path / "a/b"), OPTIONS))
    assert tree(tmp_path) == before


def test_a_bucket_is_left_as_it_was(s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}/runs/r", OPTIONS, role="output")
    store.put("kept", b"x")
    assert probe(store)
    assert [entry.key for entry in store.list()] == ["kept"]


class Unconditional(LocalStore):
    """A store that doesn't know conditions: it says so, or passes over them."""

    refuses = False

    def put(self, key: str, source: Path | bytes, **asked: object) -> object:  # type: ignore[override]
        if self.refuses and asked.get("if_none_match"):
            raise ConflictError("The store refused the request: check.")
        return super().put(key, source)


@pytest.mark.parametrize("refuses", [True, False])
def test_a_store_without_conditions_is_told(tmp_path: Path, refuses: bool) -> None:
    store = Unconditional(tmp_path / "s", OPTIONS)
    store.refuses = refuses
    assert not probe(store)
    assert tree(tmp_path) == []


def test_a_missing_bucket_is_a_conflict(s3_bucket: str) -> None:
    with pytest.raises(ConflictError, match="does not exist"):
        probe(open_store(f"s3://{s3_bucket}-missing/runs", OPTIONS, role="output"))


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_each_verb_that_is_not_allowed_is_found(s3_proxy: Proxy, s3_bucket: str, method: str) -> None:
    s3_proxy.faults[method] = ["403"]
    store = open_store(f"s3://{s3_bucket}", OPTIONS, role="output")
    with pytest.raises(NoPermissionError, match=s3_bucket):
        probe(store)
    s3_proxy.faults.clear()
    left = list(store.list())
    assert len(left) == (method == "DELETE")  # what may not be deleted lies there, and the error names it


def test_what_is_read_otherwise_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Store = open_store(str(tmp_path), OPTIONS)
    monkeypatch.setattr(type(store), "read", lambda self, key: b"other")
    with pytest.raises(TransientError, match="otherwise"):
        probe(store)
    assert tree(tmp_path) == []


@pytest.mark.usefixtures("s3_bucket")
def test_whose_the_credentials_are() -> None:
    found = account.identity()
    assert found.method == "env"
    assert found.arn or found.why
    if not REAL:
        assert str(found.arn).startswith("arn:aws:sts::")


def test_no_credentials_are_a_matter_of_permission(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(NoPermissionError, match="AWS_ACCESS_KEY_ID"):
        account.identity()


def test_a_store_that_is_not_amazons_is_not_asked_at_amazon(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    found = account.identity()
    assert (found.arn, "not Amazon's" in found.why) == (None, True)


def test_a_store_without_sts_is_no_failure(s3_bucket: str, s3_proxy: Proxy) -> None:
    s3_proxy.faults["POST"] = ["405"]
    found = account.identity()
    assert (found.arn, bool(found.why)) == (None, True)


@pytest.mark.skipif(not REAL, reason="moto checks no secret; run tests/storage/with_radosgw.sh")
def test_a_wrong_secret_is_found(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(NoPermissionError):
        probe(open_store(f"s3://{s3_bucket}", OPTIONS, role="output"))


@pytest.mark.usefixtures("s3_bucket")
def test_the_clocks_agree_on_one_machine() -> None:
    skew = account.skew_s()
    assert skew is not None
    assert abs(skew) < 60


@pytest.mark.usefixtures("s3_bucket")
def test_a_clock_that_is_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(hours=1)

    monkeypatch.setattr(account, "datetime", Slow)
    assert 3500 < (account.skew_s() or 0) < 3700


def test_a_store_that_does_not_answer_tells_no_time(
    s3_bucket: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    assert account.skew_s() is None


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL", "nonsense"), ("AWS_PROFILE", "nobody")])
def test_settings_that_cannot_be_are_no_bug(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="AWS_"):
        account.identity()
    assert account.skew_s() is None
