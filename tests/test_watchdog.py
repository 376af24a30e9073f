"""What beats, and that a beat costs next to nothing."""

import time

import pytest

from inat_job import signals, watchdog
from inat_job.errors import Preempted


@pytest.fixture
def beats() -> list[float]:
    told: list[float] = []
    watchdog.watched_by(lambda: told.append(watchdog._last))  # by the clock that it goes by: this one is read later
    yield told
    watchdog.watched_by(None)


def test_the_watcher_is_told_once_a_second(beats: list[float]) -> None:
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        watchdog.beat()
    assert len(beats) == 2
    assert beats[1] - beats[0] >= watchdog.AT_MOST_EVERY_S
    time.sleep(0.05)
    assert 0.05 <= watchdog.still_s() < 1.0
    assert len(beats) == 2, "nobody beats by itself"


def test_a_look_at_the_stop_flag_beats_and_work_in_the_background_does_not(beats: list[float]) -> None:
    signals.check(signals.never, "storing")
    assert not beats
    signals.check(lambda: False, "decoding")
    assert len(beats) == 1
    with pytest.raises(Preempted):
        signals.check(lambda: True, "decoding")
