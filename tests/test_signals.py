"""The stop flag: its first reason counts, whether a signal or a thread has given it."""

import signal
from collections.abc import Iterator

import pytest

from inat_job.signals import SIGNALS, StopFlag
from tests.harness.in_process import wakeup_descriptor


@pytest.fixture
def installed() -> Iterator[StopFlag]:
    """A flag that handles this process's signals."""
    handlers, wakeup = {number: signal.getsignal(number) for number in SIGNALS}, wakeup_descriptor()
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(wakeup)


def test_signal_after_a_notice_is_not_the_reason(installed: StopFlag) -> None:
    installed.set("a Spot notice")
    raised_at = installed.raised_at
    signal.raise_signal(signal.SIGTERM)
    assert (installed.why, installed.raised_at) == ("a Spot notice", raised_at)


def test_first_of_two_signals_is_the_reason(installed: StopFlag) -> None:
    installed.ignore_repeats()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert installed.why == "SIGINT"
