"""The retry policy."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inat_job.errors import TransientError
from inat_job.storage import StorageOptions, open_store, partial_download, retry
from inat_job.storage.partial_download import ChunkPlan
from inat_job.storage.retry import FIRST_WAIT_S, LONGEST_WAIT_S, Retries, RetryableError, backoff_s, with_retries
from tests.harness.web_sites import Site


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_retries_count_attempts_without_progress() -> None:
    retries = Retries(2, "s3://bucket")
    for _ in range(5):
        retries.wait(RetryableError("cut"), progressed=True)
    retries.wait(RetryableError("cut"))
    with pytest.raises(RetryableError):
        retries.wait(RetryableError("cut"))


def test_backoff_doubles_up_to_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.2)

    def longest(failed: int) -> float:
        return max(backoff_s(failed) for _ in range(200))

    assert 0.1 <= longest(1) <= 0.2
    assert 0.4 <= longest(3) <= 0.8
    assert longest(40) <= retry.LONGEST_WAIT_S


@given(st.integers(1, 10**9))
@example(2000)
def test_backoff_range(failed: int) -> None:
    assert FIRST_WAIT_S / 2 <= backoff_s(failed) <= LONGEST_WAIT_S


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    events = map(json.loads, capsys.readouterr().out.splitlines())
    return [each["message"] for each in events if each["event"] == "warning"]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between this thread's tries, which take no time; no host is known."""
    made, pause = list[float](), retry.pause

    def note(seconds: float, *rest: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            made.append(seconds)
        else:  # a request that an earlier test left behind, or a download's
            pause(seconds / 100, *rest)

    monkeypatch.setattr(retry, "pause", note)
    monkeypatch.setattr(retry, "_HOSTS", retry._Hosts())
    return made


def test_first_failure_is_told_at_once_and_once_per_trouble(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr(partial_download, "plan_chunks", lambda size: ChunkPlan(size, 1000))
    site.files["x.zip"], site.etags["x.zip"], site.faults = bytes(20_000), '"v"', ["503"] * 6
    store = open_store(site.url, StorageOptions(threads=8, retries=14))
    store.get("x.zip", tmp_path / "x")
    [told] = warnings(capsys)
    assert told == f"{site.url}/x.zip was not served (HTTP 503): trying again, up to 14 times in about 124 s."
    monkeypatch.setattr(retry, "_SAME_TROUBLE_S", 0.0)
    site.faults = ["503"]
    store.read("x.zip")
    assert len(warnings(capsys)) == 1


def test_another_host_in_trouble_is_told_too(
    closed_port: int, capsys: pytest.CaptureFixture[str], pauses: list[float]
) -> None:
    for host in (f"127.0.0.1:{closed_port}", f"localhost:{closed_port}"):
        with pytest.raises(TransientError, match="despite retries: check the network"):
            open_store(f"http://{host}", StorageOptions(retries=2)).stat("x")
    assert len(warnings(capsys)) == 2
    assert len(pauses) == 4


@pytest.mark.parametrize("scheme", ["https", "s3"])
def test_name_that_never_resolved_gives_up_after_three_tries(
    scheme: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pauses: list[float]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "k")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://a.nowhere.invalid")
    checked = "AWS_ENDPOINT_URL" if scheme == "s3" else "--weights"
    store = open_store(f"{scheme}://a.nowhere.invalid/d", StorageOptions(flag="--weights"))
    with pytest.raises(TransientError, match=f"host a.nowhere.invalid can't be resolved .*: check {checked}"):
        store.stat("x")
    assert len(pauses) == 2
    [told] = [each for each in warnings(capsys) if "a.nowhere.invalid can't be resolved" in each]
    assert "up to 2 times" in told


def test_name_that_resolved_before_gets_all_retries(pauses: list[float]) -> None:
    def fail() -> None:
        raise RetryableError("gone", is_unresolved=True)

    for count in (2, 14):
        with pytest.raises(RetryableError):
            with_retries(fail, 14, "https://host/x")
        assert len(pauses) == count
        pauses.clear()
        with_retries(lambda: None, 14, "https://host/y")
