"""What counts as a beat, and how often the watcher is called."""

import time

import pytest

from inat_job import signals, watchdog
from inat_job.errors import Preempted


@pytest.fixture
def beats() -> list[float]:
    times: list[float] = []
    watchdog.watched_by(lambda: times.append(watchdog._last))  # the watchdog's own clock: this one is read later
    yield times
    watchdog.watched_by(None)


def test_watcher_is_called_at_most_once_a_second(beats: list[float]) -> None:
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        watchdog.beat()
    assert len(beats) == 2
    assert beats[1] - beats[0] >= watchdog.AT_MOST_EVERY_S
    time.sleep(0.05)
    assert 0.05 <= watchdog.still_s() < 1.0
    assert len(beats) == 2, "no thread beats by itself"


def test_stop_check_beats_except_in_the_background(beats: list[float]) -> None:
    signals.check(signals.never, "storing")
    assert not beats
    signals.check(lambda: False, "decoding")
    assert len(beats) == 1
    with pytest.raises(Preempted):
        signals.check(lambda: True, "decoding")
