"""The AWS identity of the job, and the skew of the clocks."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from inat_job.errors import NoPermissionError, UsageError
from inat_job.storage.s3 import account, s3_errors
from tests.storage.conftest import S3Proxy

REAL = "INAT_TEST_S3_ENDPOINT" in os.environ


@pytest.mark.usefixtures("s3_bucket")
def test_identity() -> None:
    found = account.identity()
    assert found.method == "env"
    assert found.arn or found.why
    if not REAL:
        assert str(found.arn).startswith("arn:aws:sts::")


def test_missing_credentials_are_no_permission(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(NoPermissionError, match="AWS_ACCESS_KEY_ID"):
        account.identity()


def test_identity_of_other_store_does_not_ask_amazon(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    found = account.identity()
    assert (found.arn, "not Amazon" in found.why) == (None, True)


def test_identity_without_sts(s3_bucket: str, s3_proxy: S3Proxy) -> None:
    s3_proxy.faults["POST"] = ["405"]
    found = account.identity()
    assert (found.arn, bool(found.why)) == (None, True)


@pytest.mark.usefixtures("s3_bucket")
def test_skew_on_one_machine() -> None:
    skew = account.skew_s()
    assert skew is not None
    assert abs(skew) < 60


@pytest.mark.usefixtures("s3_bucket")
def test_skew_of_slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(hours=1)

    monkeypatch.setattr(s3_errors, "datetime", Slow)
    assert 3500 < (account.skew_s() or 0) < 3700


def test_skew_unknown_without_answer(s3_bucket: str, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    assert account.skew_s() is None


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL", "nonsense"), ("AWS_PROFILE", "nobody")])
def test_invalid_aws_configuration_is_usage_error(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="AWS_"):
        account.identity()
    assert account.skew_s() is None
