"""What follows a trial's end, and when a sweep is over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.run.trial_link import Ended
from inat_job.search.outcomes import (
    MOST_FAILURES,
    Limits,
    Next,
    SearchState,
    covered_s,
    how_to_go_on,
    next_of,
    why_ended,
)

VALUES = st.lists(st.none() | st.floats(0.0, 1.0), max_size=30).map(tuple)


@pytest.mark.parametrize(
    ("code", "pruned", "failures", "follows"),
    [
        (0, False, 0, Next.DONE),
        (0, True, 0, Next.DONE),  # its last epoch was the one at which it would have been pruned
        (143, True, 0, Next.PRUNED),
        (143, False, 0, Next.CONTINUE),
        (75, False, 1, Next.CONTINUE),
        (75, False, MOST_FAILURES, Next.FAILED),
        (137, False, 1, Next.CONTINUE),
        (137, False, MOST_FAILURES, Next.FAILED),
        (139, False, MOST_FAILURES, Next.FAILED),
        (78, False, 1, Next.FAILED),
        (1, False, 1, Next.FAILED),
        (2, False, 1, Next.FAILED),
        (65, False, 1, Next.FAILED),
        (77, False, 1, Next.END_SWEEP),
    ],
)
def test_what_follows(code: int, pruned: bool, failures: int, follows: Next) -> None:
    assert next_of(Ended(code, ""), pruned, failures) is follows


def test_trial_that_another_job_holds_is_no_failure() -> None:
    assert next_of(Ended(75, "", held=True), False, MOST_FAILURES) is Next.CONTINUE


def test_images_that_cannot_be_had_end_the_sweep() -> None:
    assert next_of(Ended(65, "", on_images=True), False, 1) is Next.END_SWEEP


@given(st.integers(0, 255), st.booleans(), st.integers(0, 9))
def test_only_a_success_is_done(code: int, pruned: bool, failures: int) -> None:
    assert (next_of(Ended(code, ""), pruned, failures) is Next.DONE) == (code == 0)


@given(VALUES)
def test_best_and_trials_since(values: tuple[float | None, ...]) -> None:
    state = SearchState(values, 0.0)
    known = [value for value in values if value is not None]
    assert state.best == (max(known) if known else None)
    if known:
        at = len(values) - 1 - state.since_best
        assert values[at] == state.best
        assert all(value is None or value < state.best for value in values[:at])
    else:
        assert state.since_best == len(values)


@given(VALUES, st.integers(1, 40), st.floats(0, 1e6))
def test_sweep_ends_with_its_number_of_trials(values: tuple[float | None, ...], trials: int, seconds: float) -> None:
    assert bool(why_ended(SearchState(values, seconds), Limits(trials))) == (len(values) >= trials)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(9), ""),
        (Limits(4), "all 4 trials have ended"),
        (Limits(9, target=0.5), "a trial reached 0.5"),
        (Limits(9, target=0.51), ""),
        (Limits(9, patience=2), "2 trials brought no better one"),
        (Limits(9, patience=3), ""),
        (Limits(9, max_time=60), "trials were at work for 60 s"),
        (Limits(9, max_time=61), ""),
    ],
)
def test_limits(limits: Limits, why: str) -> None:
    assert why_ended(SearchState((0.25, 0.5, None, 0.5), 60.0), limits) == why


@pytest.mark.parametrize(
    ("limits", "advice"),
    [
        (Limits(2, max_time=60), "raise --trials"),
        (Limits(9, max_time=60), "raise --max-time"),
        (Limits(9, patience=2, max_time=90), "raise --patience"),
        (Limits(9), "start another sweep with a wider --space"),
    ],
)
def test_search_without_a_finished_trial_names_the_limit_that_ended_it(limits: Limits, advice: str) -> None:
    assert how_to_go_on(SearchState((None, None), 60.0), limits).startswith(advice)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9))))
def test_covered_seconds_count_each_once(pairs: list[tuple[int, int]]) -> None:
    seconds = {second for start, length in pairs for second in range(start, start + length)}
    assert covered_s([(start, start + length) for start, length in pairs]) == len(seconds)
