"""The validation accuracy by value of a setting, and the interval of its mean."""

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.search.axis_accuracy import by_value, mean_interval


def trial(values: dict[str, Any], accuracy: float | None, outcome: str = "done") -> dict[str, Any]:
    epochs = [] if accuracy is None else [accuracy / 2, accuracy, accuracy / 4]
    return {
        "values": values,
        "epochs": epochs,
        "outcome": outcome,
        "val_accuracy": None if outcome != "done" else accuracy,
    }


@pytest.mark.parametrize(
    ("count", "t"), [(2, 12.7062), (3, 4.30265), (4, 3.18245), (11, 2.22814), (30, 2.04523), (1001, 1.96234)]
)
def test_interval_is_that_of_the_tables_of_student_t(count: int, t: float) -> None:
    shares = [0.4, 0.402, *[0.401] * (count - 2)]
    low, high = mean_interval(shares)  # type: ignore[misc]
    assert (low + high) / 2 == pytest.approx(0.401)
    assert (high - low) / 2 == pytest.approx(t * statistics.stdev(shares) / count**0.5, rel=1e-5)


@given(st.lists(st.floats(0, 1), max_size=40))
def test_interval_holds_the_mean(shares: list[float]) -> None:
    interval = mean_interval(shares)
    assert (interval is None) == (len(shares) < 2)
    if interval:
        assert 0 <= interval[0] <= sum(shares) / len(shares) + 1e-12
        assert sum(shares) / len(shares) - 1e-12 <= interval[1] <= 1


def test_rows_of_choices() -> None:
    trials = [trial({"x": "a"}, 0.2), trial({"x": "a"}, 0.4), trial({"x": "b"}, 0.6, "pruned")]
    trials += [trial({"x": "b"}, None, "failed"), trial({}, 0.9)]
    rows = by_value("x", {"choices": ["a", "b", "c"]}, trials)
    assert [(row["value"], row["n"], row["mean"]) for row in rows] == [
        ("a", 2, pytest.approx(0.3)),
        ("b", 1, 0.6),
        ("c", 0, None),
    ]
    assert [row["ci95"] is None for row in rows] == [False, True, True]


@given(st.lists(st.integers(1, 6), max_size=30))
def test_rows_of_a_range_have_every_trial_once(values: list[int]) -> None:
    rows = by_value("x", {"low": 1, "high": 6, "log": False}, [trial({"x": value}, 0.1 * value) for value in values])
    assert sum(row["n"] for row in rows) == len(values)
    assert len(rows) == min(4, len(values))
    assert sum(row["n"] * row["mean"] for row in rows) == pytest.approx(0.1 * sum(values))
    ends = [end for row in rows for end in row["value"]]
    assert ends == sorted(ends)
