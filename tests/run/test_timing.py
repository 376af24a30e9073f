"""The clock adds up the phases of this attempt and the stored training of earlier ones."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from inat_job.run import timing
from inat_job.run.timing import Clock


def test_timing_reports_each_phase_and_training_of_all_attempts() -> None:
    clock = Clock(time.perf_counter() - 10.0)
    for _ in range(2):
        with clock.phase("prepare_s"):
            time.sleep(0.01)
    clock.mark_first_step(time.perf_counter() - 4.0)
    clock.add_earlier(100.0)
    seconds = clock.timing(train_s=107.0)
    assert 0.02 <= seconds["prepare_s"] < 5
    assert 6.0 <= seconds["startup_s"] < 8
    assert 10.0 <= seconds["total_s"] < 15
    assert (seconds["train_s"], seconds["pull_s"]) == (107.0, 0.0)
    assert 110.0 <= clock.wall_s() < 115


def test_dates_are_of_the_process_and_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    started = datetime.fromisoformat(Clock(time.perf_counter() - 3600).started_at())
    now = datetime.fromisoformat(timing.utc_now())
    monkeypatch.undo()
    time.tzset()
    assert started.utcoffset() == timedelta(0)
    assert 3595 < (now - started).total_seconds() < 3605
    assert abs((datetime.now(UTC) - now).total_seconds()) < 5


def test_startup_lasts_until_now_without_a_training_step() -> None:
    clock = Clock(time.perf_counter() - 3.0)
    clock.mark_first_step(None)
    assert 3.0 <= clock.timing(0.0)["startup_s"] < 5
