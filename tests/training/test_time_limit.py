"""How many steps fit into --max-time, and how fast an attempt is."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inat_job.training import time_limit
from inat_job.training.time_limit import Pace, PaceMeter, end_that_fits, is_moment

SECONDS = st.floats(0.001, 100)


@given(
    st.tuples(st.integers(0, 100), st.integers(1, 300), st.integers(1, 100)),
    st.data(),
    SECONDS,
    st.floats(0, 50),
    st.floats(1, 10**5),
)
def test_end_fits_and_little_time_is_left(
    epochs: tuple[int, int, int], data: st.DataObject, step_s: float, rest_s: float, limit_s: float
) -> None:
    done, per_epoch, more = epochs
    step, total = done * per_epoch, (done + more) * per_epoch
    used_s, end = step * step_s, data.draw(st.integers(step, total))
    fits = end_that_fits(step, end, total, per_epoch, used_s, limit_s, Pace(step_s, rest_s))
    assert step <= fits <= total
    if step == end:
        assert fits == end
        return

    def left_s(steps: int) -> float:
        return steps * step_s + -(-steps // per_epoch) * rest_s

    if fits > step:
        assert left_s(fits - step) <= limit_s - used_s + 1e-6
    if fits < total:  # a step more would take too long, or it is not worth another end
        unused = used_s + left_s(fits + 1 - step) <= 0.98 * limit_s - 1e-6
        worth = step + math.ceil(1.05 * (fits - step))
        too_little = worth > total or used_s + left_s(worth + 1 - step) > 0.98 * limit_s - 1e-6
        assert not unused or (fits == end and too_little)


@given(st.integers(1, 1000), st.integers(1, 300), SECONDS)
def test_enough_time_shortens_nothing(step: int, per_epoch: int, step_s: float) -> None:
    assume(step < 1000)
    assert end_that_fits(step, 1000, 1000, per_epoch, step * step_s, 1100 * step_s, Pace(step_s, 0.0)) == 1000


def test_within_an_epoch_only_what_cannot_wait_is_decided() -> None:
    pace = Pace(1.0, 5.0)
    assert end_that_fits(64, 1000, 1000, 100, 64.0, 200.0, pace) == 1000  # the epoch ends at 105 s
    assert end_that_fits(64, 1000, 1000, 100, 64.0, 100.0, pace) == 64 + 29  # 98 s, less 5 for validation
    assert end_that_fits(64, 70, 1000, 100, 64.0, 200.0, pace) == 64 + 122  # it was planned to end before
    assert end_that_fits(64, 64, 1000, 100, 64.0, 200.0, pace) == 64


def test_run_is_lengthened_where_that_is_worth_it() -> None:
    pace = Pace(1.0, 0.0)
    assert end_that_fits(100, 200, 1000, 100, 100.0, 210.0 / 0.98, pace) == 210
    assert end_that_fits(100, 200, 1000, 100, 100.0, 204.0 / 0.98, pace) == 200
    assert end_that_fits(100, 200, 205, 100, 100.0, 9999.0, pace) == 205


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
