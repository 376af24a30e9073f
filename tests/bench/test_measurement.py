"""Medians, shares, the bottleneck and the table are pure functions of the measurements."""

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.bench.measurement import (
    EPOCH,
    IMAGES_PER_S,
    Measurement,
    bottleneck,
    format_number,
    run_durations,
    shares_of_total,
    table,
)

RATES = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=7).map(tuple)


@given(RATES, st.floats(0.1, 10))
def test_share_is_each_value_over_the_limit_measured_with_it(values: tuple[float, ...], factor: float) -> None:
    each = Measurement("x", IMAGES_PER_S, values, "limit", tuple(value * factor for value in values))
    assert all(abs(share * factor - 1) < 1e-9 for share in each.shares)
    assert each.share is not None
    assert min(each.values) <= each.median <= max(each.values)


@given(RATES, RATES)
def test_share_uses_the_limits_median_if_the_numbers_differ(
    values: tuple[float, ...], limits: tuple[float, ...]
) -> None:
    each = Measurement("x", IMAGES_PER_S, values, "limit", limits)
    if len(values) != len(limits):
        assert each.shares == tuple(value / statistics.median(limits) for value in values)
    assert json.loads(json.dumps(each.as_dict()))["share"]["median"] == each.share


def test_measurement_without_limit_has_no_share() -> None:
    each = Measurement("x", "s", (1.0, 3.0, 2.0))
    assert (each.median, each.share, each.as_dict()["limit"]) == (2.0, None, None)


@given(st.lists(RATES, min_size=1, max_size=5))
def test_bottleneck_is_the_slowest_stage_of_an_epoch(rates: list[tuple[float, ...]]) -> None:
    stages = [Measurement(str(number), IMAGES_PER_S, values, role=EPOCH) for number, values in enumerate(rates)]
    once = Measurement("prepare", IMAGES_PER_S, (1e-6,))
    slowest = bottleneck([once, *stages])
    assert slowest is not None
    assert slowest.median == min(each.median for each in stages)
    assert bottleneck([once]) is None


@given(st.lists(st.tuples(RATES, st.booleans()), max_size=5))
def test_table_has_a_line_for_each_measurement(found: list[tuple[tuple[float, ...], bool]]) -> None:
    each = [
        Measurement(f"n{at}", "s", values, "most", values if limited else ())
        for at, (values, limited) in enumerate(found)
    ]
    lines = table(each).splitlines()
    assert len(lines) == len(found) + 1
    assert all(f"n{at}" in line for at, line in enumerate(lines[1:]))
    assert all(("1.000" in line) == limited for line, (_, limited) in zip(lines[1:], found, strict=True) if limited)


def test_format_number_keeps_four_digits() -> None:
    assert [format_number(value) for value in (0.0, 0.012345, 3.14159, 31415.9, 1e-5)] == [
        *("0", "0.01235", "3.142"),
        *("31,416", "1.000e-05"),
    ]


def test_run_durations_add_up_single_and_repeated_stages() -> None:
    rates = {"prepare": 10.0, "training epoch": 4.0, "test": 2.0}
    found = [Measurement(name, IMAGES_PER_S, (rate,)) for name, rate in rates.items()]
    counts = {"train": 6, "val": 2, "test": 2}
    seconds = run_durations([*found, Measurement("time to first step", "s", (5.0,))], counts, 2)
    assert seconds == {"start": 5.0, "prepare": 1.0, "training": 3.0, "evaluation": 4.0}
    assert run_durations(found[:1], counts, 2) == {"prepare": 1.0}


@pytest.mark.soak
@given(st.dictionaries(st.text(), st.floats(1e-3, 1e6)))
def test_shares_of_total_add_up_to_one(seconds: dict[str, float]) -> None:
    assert sum(shares_of_total(seconds).values()) == (pytest.approx(1) if seconds else 0)
