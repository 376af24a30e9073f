"""The clock adds up the phases of this attempt and the stored training of earlier ones."""

import time

from inat_job.run.timing import Clock


def test_timing_reports_each_phase_and_training_of_all_attempts() -> None:
    clock = Clock(time.perf_counter() - 10.0)
    for _ in range(2):
        with clock.phase("prepare_s"):
            time.sleep(0.01)
    clock.mark_first_step(time.perf_counter() - 4.0)
    clock.add_earlier(100.0)
    timing = clock.timing(train_s=107.0)
    assert 0.02 <= timing["prepare_s"] < 5
    assert 6.0 <= timing["startup_s"] < 8
    assert 10.0 <= timing["total_s"] < 15
    assert (timing["train_s"], timing["pull_s"]) == (107.0, 0.0)
    assert 110.0 <= clock.wall_s() < 115


def test_startup_lasts_until_now_without_a_training_step() -> None:
    clock = Clock(time.perf_counter() - 3.0)
    clock.mark_first_step(None)
    assert 3.0 <= clock.timing(0.0)["startup_s"] < 5
