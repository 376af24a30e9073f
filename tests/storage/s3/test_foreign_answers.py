"""Answers that no S3 server should give, and credentials that cannot be read: each ends in one of our errors."""

import email.utils
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inat_job.errors import BadDataError, ConflictError, JobError, NoPermissionError, TransientError
from inat_job.storage import StorageOptions, Store, open_store, retry
from inat_job.storage.s3 import multipart_upload, s3_store
from tests.harness.raw_answers import encode_answer, raw_server

# botocore leaves the connection of an answer that it cannot parse to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ONCE = StorageOptions(retries=1, threads=1)
VERBS = {
    "stat": lambda store, path: store.stat("key"),
    "read": lambda store, path: store.read("key"),
    "get": lambda store, path: store.get("key", path),
    "put": lambda store, path: store.put("key", b"x"),
    "list": lambda store, path: list(store.list()),
    "delete": lambda store, path: store.delete("key"),
}
STARTED = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def _store(url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    return open_store("s3://bucket/run", ONCE)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "answer",
    [
        encode_answer(body=b"<html>Please log in", ETag='"e"'),
        encode_answer(body=b"{}", ETag='"e"', Last_Modified="yesterday"),
        encode_answer(length="9" * 5000, ETag='"e"'),
        encode_answer(length=10**18, ETag='"e"'),
        encode_answer(length="-5", ETag='"e"'),
        encode_answer(length="\xb2", ETag='"e"'),
        encode_answer(body=b"<ListBucketResult><Contents><Size>x</Size></Contents></ListBucketResult>"),
        encode_answer("302 Found", Location="ftp://host/x"),
        encode_answer("412 Precondition Failed"),
        encode_answer("416 Range Not Satisfiable"),
        encode_answer("304 Not Modified"),
        encode_answer("999 No"),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
    ids=lambda each: repr(each[:70]),
)
def test_unreadable_answer_is_one_of_our_errors(
    verb: str, answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raw_server(lambda method, path: answer) as url:
        store = _store(url, monkeypatch)
        raised = None
        try:
            VERBS[verb](store, tmp_path / "x")  # some verbs do not need what is wrong
        except JobError as error:
            raised = error
        assert raised is None or raised.exit_code in (65, 75, 77, 78), repr(raised)


def test_part_answered_without_etag_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart_upload, "SINGLE_REQUEST_LIMIT", 10)
    answers = {"POST": encode_answer(body=STARTED), "PUT": encode_answer(), "DELETE": encode_answer("204 No Content")}
    with raw_server(lambda method, path: answers[method]) as url, pytest.raises(TransientError, match="127.0.0.1"):
        _store(url, monkeypatch).put("key", b"x" * 100)


def _page(number: int, key: str) -> bytes:
    token = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{number}</NextContinuationToken>"
    contents = f"<Contents><Key>run/{key}</Key><Size>1</Size><ETag>e</ETag></Contents>" if key else ""
    return encode_answer(body=f"<ListBucketResult>{token}{contents}</ListBucketResult>".encode())


@pytest.mark.parametrize(
    "keys", [itertools.repeat("same"), itertools.repeat(""), itertools.cycle("abc")], ids=["one", "none", "three"]
)
def test_listing_that_repeats_ends(keys: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "MOST_EMPTY_PAGES", 20)
    pages = (_page(number, key) for number, key in zip(itertools.count(), keys, strict=False))  # type: ignore[call-overload]
    with raw_server(lambda method, path: next(pages)) as url, pytest.raises(TransientError, match="listing"):
        list(_store(url, monkeypatch).list())


@pytest.mark.parametrize("keys", [itertools.repeat(""), itertools.cycle("abc")], ids=["none", "three"])
def test_listing_of_uploads_that_repeats_ends(keys: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "MOST_EMPTY_PAGES", 20)

    def page(number: int, key: str) -> bytes:
        upload = f"<Upload><Key>run/{key}</Key><UploadId>u</UploadId></Upload>" if key else ""
        marker = f"<IsTruncated>true</IsTruncated><NextKeyMarker>{number}</NextKeyMarker>"
        return encode_answer(body=f"<ListMultipartUploadsResult>{marker}{upload}</ListMultipartUploadsResult>".encode())

    pages = (page(number, key) for number, key in zip(itertools.count(), keys, strict=False))  # type: ignore[call-overload]
    with raw_server(lambda method, path: next(pages)) as url, pytest.raises(TransientError, match="listing"):
        _store(url, monkeypatch).delete_drafts(lambda key: True)


def test_listing_with_one_token_for_all_pages_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = map(str, itertools.count())
    with raw_server(lambda method, path: _page(1, next(keys))) as url, pytest.raises(TransientError):
        list(_store(url, monkeypatch).list())


def test_listing_of_too_many_objects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "MOST_OBJECTS", 30)
    numbers = itertools.count()
    with (
        raw_server(lambda method, path: _page(at := next(numbers), f"{at:05}")) as url,
        pytest.raises(BadDataError, match="more than 30 objects"),
    ):
        list(_store(url, monkeypatch).list())


def test_size_that_no_disk_holds_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = encode_answer(length=10**18, ETag='"e"')
    with (
        raw_server(lambda method, path: answer) as url,
        pytest.raises(ConflictError, match=r"No space left in .* 1,000,000,000,000 MB more needed"),
    ):
        _store(url, monkeypatch).get("key", tmp_path / "x")


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "{folder}/none", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/r"},
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "{folder}", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/r"},
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/c",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "{folder}/none",
        },
        {"AWS_CONFIG_FILE": "{folder}/config"},
    ],
    ids="+".join,
)
def test_credentials_that_cannot_be_read_are_no_permission(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\ncredential_process = /nowhere/to/be/found\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(folder=tmp_path))
    with pytest.raises(NoPermissionError, match="credentials"):
        _store("http://127.0.0.1:9", monkeypatch).stat("key")


@pytest.mark.parametrize("hours", [-3, 3])
@pytest.mark.parametrize("status", ["403 Forbidden", "400 Bad Request"])
def test_wrong_clock_is_told_by_the_date_of_an_answer_to_a_head(
    status: str, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    with raw_server(lambda method, path: encode_answer(status, Date=date)) as url:
        with pytest.raises(NoPermissionError, match="clock"):
            _store(url, monkeypatch).stat("key")
        with pytest.raises(NoPermissionError) as unsigned:
            open_store("s3://bucket/run", StorageOptions(retries=0, anonymous=True)).stat("key")
        assert "clock" not in str(unsigned.value)


@pytest.mark.parametrize("date", ["yesterday", "", "Mon, 1 Jan 99999 00:00:00 GMT", "1 Jan 2020 00:00:00 -0000"])
def test_date_of_an_answer_that_is_none_is_ignored(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        raw_server(lambda method, path: encode_answer("403 Forbidden", Date=date)) as url,
        pytest.raises(NoPermissionError, match="No permission"),
    ):
        _store(url, monkeypatch).stat("key")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", ["two\nlines", "end\r\n", "\nstart"])
def test_key_with_line_break_is_no_permission_at_once(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(retry, "pause", lambda *_: pytest.fail("it waits"), raising=False)
    with pytest.raises(NoPermissionError, match="line break"):
        _store("http://127.0.0.1:9", monkeypatch).stat("key")


@pytest.mark.parametrize(("configured", "style"), [("", "path"), ("s3 =\n  addressing_style = virtual\n", "virtual")])
def test_addressing_style_of_the_user_wins(
    configured: str, style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{configured}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = _store("https://oss-cn-hangzhou.aliyuncs.com", monkeypatch)
    assert isinstance(store, s3_store.S3Store)
    assert store._client.meta.config.s3["addressing_style"] == style
    host = "bucket.oss-cn-hangzhou.aliyuncs.com" if style == "virtual" else "oss-cn-hangzhou.aliyuncs.com/bucket"
    assert f"https://{host}/run/key?" in store.address("key")
