"""The retry policy."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inat_job.storage import retry
from inat_job.storage.retry import FIRST_WAIT_S, LONGEST_WAIT_S, Retries, RetryableError, backoff_s


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_retries_count_attempts_without_progress() -> None:
    retries = Retries(2)
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
