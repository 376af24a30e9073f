"""Headers and statuses that no web server should send: each ends in a download or in one of our errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inat_job.errors import ConflictError, JobError, TransientError
from inat_job.storage import StorageOptions, open_store, retry
from tests.harness.raw_answers import encode_answer, raw_server

# urllib leaves the connection of an answer that it refuses to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ONCE = StorageOptions(retries=1, threads=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def _raised(answer: bytes, path: Path) -> JobError | None:
    """What a download of this answer ends with."""
    with raw_server(lambda method, address: answer) as url:
        try:
            open_store(url, ONCE).get("x.zip", path)
        except JobError as error:
            return error
    return None


@pytest.mark.parametrize(
    "wait",
    ["\xb2", "-1", "9" * 5000, "1e400", "nan", "", "soon", "Mon, 1 Jan 99999 00:00:00 GMT", "1 Jan 2020 00:00 -0000"],
    ids=lambda each: each[:20],
)
def test_retry_after_that_is_no_time_is_ignored(wait: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "LONGEST_WAIT_S", 0.01)
    raised = _raised(encode_answer("503 Busy", Retry_After=wait), tmp_path / "x")
    assert isinstance(raised, TransientError)
    assert "HTTP 503" in str(raised)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:9/x.zip", "file:///etc/hostname", "data:,x", "http://[", "x:"])
def test_redirect_to_what_is_not_http_is_refused(target: str, tmp_path: Path) -> None:
    raised = _raised(encode_answer("302 Found", Location=target), tmp_path / "x")
    assert raised is not None
    assert raised.exit_code == ConflictError.exit_code, repr(raised)
    assert "x.zip" in str(raised)


def test_redirect_in_a_circle_is_refused(tmp_path: Path) -> None:
    raised = _raised(encode_answer("302 Found", Location="/x.zip"), tmp_path / "x")
    assert raised is not None
    assert raised.exit_code in (75, 78), repr(raised)


@pytest.mark.parametrize(
    "span",
    [
        "bytes 0-0/" + "9" * 5000,
        "bytes 0-0/\xb2",
        "bytes 0-0/" + str(2**63),
        "bytes 0-0/*",
        "bytes 0-0/-5",
        "bytes",
        "",
        "0",
    ],
    ids=lambda each: each[:20],
)
def test_content_range_that_is_none_is_our_error(span: str, tmp_path: Path) -> None:
    raised = _raised(encode_answer("206 Partial", b"x", Content_Range=span, ETag='"e"'), tmp_path / "x")
    assert raised is None or raised.exit_code in (65, 75, 78), repr(raised)


def test_size_that_no_disk_holds_is_told_as_such(tmp_path: Path) -> None:
    raised = _raised(
        encode_answer("206 Partial", b"x", Content_Range=f"bytes 0-0/{10**18}", ETag='"e"'), tmp_path / "x"
    )
    assert isinstance(raised, ConflictError)
    assert "No space left" in str(raised)
    assert "1,000,000,000,000 MB" in str(raised)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff" * 100,
        b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
        encode_answer("999 No"),
        encode_answer("100 Continue"),
        encode_answer(length="9" * 5000),
        encode_answer(length="-5", body=b"abc"),
        encode_answer(body=b"zz\r\nabc", Transfer_Encoding="chunked"),
        encode_answer("416 No"),
        encode_answer("304 Not Modified"),
        encode_answer("302 Found"),
        encode_answer("206 Partial", b"x", Content_Range="bytes 0-0/9", ETag='"\x07\x1b[31m"'),
        encode_answer("206 Partial", b"x", Content_Range="bytes 0-0/9", Last_Modified="yesterday \xb2"),
    ],
    ids=lambda each: repr(each[:40]),
)
def test_unreadable_answer_is_one_of_our_errors(answer: bytes, tmp_path: Path) -> None:
    raised = _raised(answer, tmp_path / "x")
    assert raised is None or raised.exit_code in (65, 75, 77, 78), repr(raised)
    assert raised is None or str(raised).isprintable(), repr(raised)


def test_malformed_headers_print_no_traceback() -> None:
    """urllib3 logs them with one."""
    headers = b"Content-Type: multipart/x\r\nbroken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with raw_server(lambda method, path: b"HTTP/1.1 403 No\r\n" + headers) as url:
        keys = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        done = subprocess.run(
            [sys.executable, "entrypoint.py", "prepare", "--data", "s3://bucket/x.zip"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **keys},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 77, done.stderr
    assert "Traceback" not in done.stderr
    assert "parse headers" not in done.stderr
