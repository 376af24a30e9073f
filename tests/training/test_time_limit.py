"""How many steps fit into --max-time, and how fast an attempt is."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inat_job.training import time_limit
from inat_job.training.time_limit import Pace, PaceMeter, end_that_fits, is_moment

SECONDS = st.floats(0.001, 100)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 300), SECONDS, st.floats(0, 50), st.floats(1, 10**5))
def test_end_never_lengthens_and_fits(
    step: int, more: int, per_epoch: int, step_s: float, rest_s: float, limit_s: float
) -> None:
    used_s, end = step * step_s, step + more
    fits = end_that_fits(step, end, per_epoch, used_s, limit_s, Pace(step_s, rest_s))
    assert step <= fits <= end
    late = used_s > 0.25 * limit_s and step % per_epoch == 0
    if late and fits > step:
        left, epochs = fits - step, -(-(fits - step) // per_epoch)
        assert left * step_s + epochs * rest_s <= limit_s - used_s + 1e-6
    if late and fits < end:  # one step more would take too long
        left, epochs = fits + 1 - step, -(-(fits + 1 - step) // per_epoch)
        assert used_s + left * step_s + epochs * rest_s > 0.98 * limit_s - 1e-6


@given(st.integers(1, 1000), st.integers(1, 300), SECONDS)
def test_enough_time_shortens_nothing(step: int, per_epoch: int, step_s: float) -> None:
    assume(step < 1000)
    assert end_that_fits(step, 1000, per_epoch, step * step_s, 1100 * step_s, Pace(step_s, 0.0)) == 1000


def test_within_an_epoch_only_what_cannot_wait_is_decided() -> None:
    pace = Pace(1.0, 5.0)
    assert end_that_fits(64, 1000, 100, 64.0, 200.0, pace) == 1000  # the epoch ends at 105 s
    assert end_that_fits(64, 1000, 100, 64.0, 100.0, pace) == 64 + 29  # 98 s, less 5 for validation
    assert end_that_fits(64, 10**6, 100, 64.0, 1050.0, pace) == 64 + 2 * (9 * 100 + 15)  # early, so with slack


def test_moments_are_few() -> None:
    assert [step for step in range(200) if is_moment(step)] == [16, 32, 64, 128]


def test_pace_leaves_out_the_first_step_and_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time_limit, "clock", lambda: now[0])
    meter = PaceMeter()
    assert meter.pace(used_s=30.0, step=10) == Pace(3.0, 0.0)
    for step_s in (2.0, 50.0, 2.0):
        for first in (100.0, step_s, step_s):
            now[0] += first
            meter.end_step()
        now[0] += 7.0
        meter.end_epoch()
    assert meter.pace(used_s=1.0, step=1) == Pace(2.0, 7.0)
