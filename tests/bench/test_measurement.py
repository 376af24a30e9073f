"""Medians, shares, the bounding stage and the table are functions of what was measured."""

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.bench.measurement import EPOCH, PICTURES, Measured, bounding, durations, portions, short, table

RATES = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=7).map(tuple)


@given(RATES, st.floats(0.1, 10))
def test_a_share_is_taken_from_what_was_measured_beside_it(values: tuple[float, ...], factor: float) -> None:
    each = Measured("x", PICTURES, values, "limit", tuple(value * factor for value in values))
    assert all(abs(share * factor - 1) < 1e-9 for share in each.shares)
    assert each.share is not None
    assert min(each.values) <= each.median <= max(each.values)


@given(RATES, RATES)
def test_other_counts_are_held_against_the_limits_median(values: tuple[float, ...], limits: tuple[float, ...]) -> None:
    each = Measured("x", PICTURES, values, "limit", limits)
    if len(values) != len(limits):
        assert each.shares == tuple(value / statistics.median(limits) for value in values)
    assert json.loads(json.dumps(each.as_dict()))["share"]["median"] == each.share


def test_what_has_no_limit_has_no_share() -> None:
    each = Measured("x", "s", (1.0, 3.0, 2.0))
    assert (each.median, each.share, each.as_dict()["limit"]) == (2.0, None, None)


@given(st.lists(RATES, min_size=1, max_size=5))
def test_the_slowest_of_an_epochs_stages_bounds(rates: list[tuple[float, ...]]) -> None:
    stages = [Measured(str(number), PICTURES, values, role=EPOCH) for number, values in enumerate(rates)]
    once = Measured("prepare", PICTURES, (1e-6,))
    bound = bounding([once, *stages])
    assert bound is not None
    assert bound.median == min(each.median for each in stages)
    assert bounding([once]) is None


@given(st.lists(st.tuples(RATES, st.booleans()), max_size=5))
def test_the_table_has_a_line_for_each(found: list[tuple[tuple[float, ...], bool]]) -> None:
    each = [
        Measured(f"n{at}", "s", values, "most", values if limited else ()) for at, (values, limited) in enumerate(found)
    ]
    lines = table(each).splitlines()
    assert len(lines) == len(found) + 1
    assert all(f"n{at}" in line for at, line in enumerate(lines[1:]))
    assert all(("1.000" in line) == limited for line, (_, limited) in zip(lines[1:], found, strict=True) if limited)


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0.0, 0.012345, 3.14159, 31415.9, 1e-5)] == [
        *("0", "0.01235", "3.142"),
        *("31,416", "1.000e-05"),
    ]


def test_a_run_is_made_of_what_happens_once_and_in_each_epoch() -> None:
    rates = {"prepare": 10.0, "training epoch": 4.0, "test": 2.0}
    found = [Measured(name, PICTURES, (rate,)) for name, rate in rates.items()]
    seconds = durations([*found, Measured("time to first step", "s", (5.0,))], {"train": 6, "val": 2, "test": 2}, 2)
    assert seconds == {"start": 5.0, "prepare": 1.0, "training": 3.0, "evaluation": 4.0}
    assert durations(found[:1], {"train": 6, "val": 2, "test": 2}, 2) == {"prepare": 1.0}


@given(st.dictionaries(st.text(), st.floats(1e-3, 1e6)))
def test_portions_are_of_one_whole(seconds: dict[str, float]) -> None:
    assert sum(portions(seconds).values()) == (pytest.approx(1) if seconds else 0)
