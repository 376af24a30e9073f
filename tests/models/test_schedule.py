"""The learning rate schedule: its shape for runs of any length, and runs whose end moves."""

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
def moved(draw: st.DrawFn) -> Schedule:
    """A schedule whose end was moved up to four times, after ever more steps."""
    schedule, step = Schedule(draw(TOTALS), draw(WARMUPS)), 0
    for _ in range(draw(st.integers(0, 4))):
        if schedule.end <= step + 1:
            break
        step = draw(st.integers(step + 1, schedule.end))
        schedule = schedule.ending_at(draw(st.integers(step, schedule.total)), decided=step)
    return schedule


@given(moved())
def test_rate_is_zero_at_the_end_and_not_before(schedule: Schedule) -> None:
    rates = [schedule.factor(step) for step in range(schedule.end + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    decided = schedule.cuts[-1][0] if schedule.cuts else 0
    at_once = decided == schedule.end  # so the last rate was given before
    assert at_once or schedule.end == 1 or rates[-1] == pytest.approx(0, abs=1e-9)
    assert all(rate > 0 for rate in rates[decided + 1 : -1])


@given(moved(), st.data())
def test_moved_end_changes_no_rate_up_to_its_decision(schedule: Schedule, data: st.DataObject) -> None:
    last = schedule.cuts[-1][0] if schedule.cuts else 0
    step = data.draw(st.integers(last, schedule.end))
    other = schedule.ending_at(data.draw(st.integers(step, schedule.total)), decided=step)
    assert [other.factor(each) for each in range(step + 1)] == [schedule.factor(each) for each in range(step + 1)]
    assert schedule.ending_at(schedule.end, decided=step) is schedule


@given(moved())
def test_run_with_its_first_end_again_has_the_plain_rates(schedule: Schedule) -> None:
    again = schedule.ending_at(schedule.total, decided=schedule.cuts[-1][0] + 1 if schedule.cuts else 0)
    plain = Schedule(schedule.total, schedule.warmup)
    steps = range(again.cuts[-1][0] + 1 if again.cuts else 0, schedule.total)
    assert [again.factor(step) for step in steps] == [plain.factor(step) for step in steps]


def test_run_that_is_shortened_in_the_warm_up_hastens_it() -> None:
    schedule = Schedule(1000, 0.1).ending_at(100, decided=5)
    assert schedule.factor(5) == pytest.approx(6 / 100)
    assert schedule.factor(6) == pytest.approx(7 / 10)
    assert max(schedule.factor(step) for step in range(100)) == 1
    assert schedule.factor(99) < 0.001


def test_rates_of_a_resumed_schedule_are_equal() -> None:
    schedule = Schedule(90, 0.1).ending_at(41, decided=7).ending_at(60, decided=20)
    again = replace(Schedule(90, 0.1), cuts=((7, 41), (20, 60)))
    assert [again.factor(step) for step in range(60)] == [schedule.factor(step) for step in range(60)]


@given(moved(), st.integers(0, 5000))
def test_end_at_a_step_is_that_of_the_cuts_until_then(schedule: Schedule, step: int) -> None:
    known = replace(schedule, cuts=tuple(cut for cut in schedule.cuts if cut[0] <= step))
    assert schedule.end_at(step) == known.end
