"""The learning rate schedule: its shape for runs of any length, and runs that are shortened."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inat_job.models.schedule import MOST_WARMUP, Schedule, learning_rate_factor

TOTALS, WARMUPS = st.integers(1, 500), st.floats(0, 0.9)


@given(TOTALS, WARMUPS)
@example(2, 0.75)
@example(1, 0.1)
def test_learning_rate_warms_up_and_decays_to_zero(total: int, warmup: float) -> None:
    rates = [learning_rate_factor(step, total, warmup) for step in range(total + 1)]
    peak = rates.index(max(rates))
    assert max(rates[:-1]) == 1
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9) or total <= 1


@given(st.integers(1, 10**7), st.floats(0, 0.9))
def test_warm_up_is_bounded(total: int, warmup: float) -> None:
    assert any(learning_rate_factor(step, total, warmup) == 1 for step in range(min(total, MOST_WARMUP + 1)))
    assert learning_rate_factor(0, total, warmup) >= 1 / MOST_WARMUP


@given(TOTALS, WARMUPS)
def test_schedule_without_cuts_is_the_plain_one(total: int, warmup: float) -> None:
    schedule = Schedule(total, warmup)
    plain = [learning_rate_factor(step, total, warmup) for step in range(total + 1)]
    assert [schedule.factor(step) for step in range(total + 1)] == plain


@st.composite
def shortened(draw: st.DrawFn) -> Schedule:
    """A schedule with up to four cuts, at ever later steps."""
    schedule, step = Schedule(draw(TOTALS), draw(WARMUPS)), 0
    for _ in range(draw(st.integers(0, 4))):
        if schedule.end <= step + 1:
            break
        step = draw(st.integers(step + 1, schedule.end))
        schedule = schedule.shortened(step, draw(st.integers(step, schedule.end)))
    return schedule


@given(shortened())
def test_shortened_schedule_reaches_zero_and_has_one_peak(schedule: Schedule) -> None:
    rates = [schedule.factor(step) for step in range(schedule.end + 1)]
    peak = rates.index(max(rates))
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[peak:], rates[peak + 1 :], strict=False))
    late = schedule.cuts and schedule.cuts[-1][0] == schedule.end  # nothing was left to anneal in
    assert late or schedule.total == 1 or rates[-1] == pytest.approx(0, abs=1e-9)


@given(shortened(), st.data())
def test_cut_changes_no_rate_up_to_its_step(schedule: Schedule, data: st.DataObject) -> None:
    last = schedule.cuts[-1][0] if schedule.cuts else 0
    step = data.draw(st.integers(last, schedule.end))
    end = data.draw(st.integers(step, schedule.end))
    cut = schedule.shortened(step, end)
    for each in range(min(step, end - 1) + 1):
        assert cut.factor(each) == pytest.approx(schedule.factor(each), abs=1e-9)
    assert schedule.shortened(step, schedule.end + data.draw(st.integers(0, 9))) is schedule


def test_cut_in_the_warm_up_hastens_it() -> None:
    schedule = Schedule(1000, 0.1).shortened(10, 100)
    assert schedule.factor(10) == pytest.approx(11 / 100)
    assert max(schedule.factor(step) for step in range(100)) == pytest.approx(1, abs=0.01)
    assert schedule.factor(99) < 0.001


def test_rates_of_a_resumed_schedule_are_equal() -> None:
    schedule = Schedule(90, 0.1).shortened(7, 60).shortened(20, 41)
    again = replace(Schedule(90, 0.1), cuts=((7, 60), (20, 41)))
    assert [again.factor(step) for step in range(41)] == [schedule.factor(step) for step in range(41)]


@given(shortened(), st.integers(0, 5000))
def test_end_at_a_step_is_that_of_the_cuts_until_then(schedule: Schedule, step: int) -> None:
    known = replace(schedule, cuts=tuple(cut for cut in schedule.cuts if cut[0] <= step))
    assert schedule.end_at(step) == known.end
