"""parallel_coordinates.py: where the lines and ticks are, and in which order and colour lines are drawn."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.reporting.parallel_coordinates import parallel_coordinates

LOG = {"low": 1e-4, "high": 1e-2, "log": True}
LINEAR = {"low": 0, "high": 10, "log": False}


def trial(number: int, accuracy: float | None, outcome: str = "done", **values: Any) -> dict[str, Any]:
    return {"number": number, "accuracy": accuracy, "outcome": outcome, "values": values}


def drawn(space: dict[str, Any], *trials: dict[str, Any], best: int = 0) -> dict[str, Any]:
    found = parallel_coordinates(space, trials, best)
    assert found is not None
    return found


def places(figure: dict[str, Any], number: int) -> list[float]:
    """The place of a trial on each axis."""
    [line] = [each for each in figure["lines"] if each["number"] == number]
    return [float(point.partition(",")[0]) for point in line["points"].split()]


def ticks(figure: dict[str, Any], axis: int = 0) -> dict[str, float]:
    return {each["text"]: each["x"] for each in figure["axes"][axis]["ticks"]}


def test_logarithmic_axis_has_equal_decades() -> None:
    figure = drawn({"lr": LOG}, *(trial(at, 0.1 * at, lr=10.0 ** (at - 4)) for at in range(3)))
    first, middle, last = (places(figure, number)[0] for number in range(3))
    assert middle - first == pytest.approx(last - middle)
    assert ticks(figure) == {"0.0001": first, "0.001": middle, "0.01": last}


def test_linear_axis() -> None:
    figure = drawn({"x": LINEAR}, trial(0, 0.1, x=0), trial(1, 0.2, x=5), trial(2, 0.3, x=10))
    assert ticks(figure) == {"0": places(figure, 0)[0], "5": places(figure, 1)[0], "10": places(figure, 2)[0]}


def test_choices_are_bands_with_better_trials_to_the_right() -> None:
    space = {"augment": {"choices": [True, False]}, "size": {"choices": [1, 2, 4]}}
    trials = [trial(at, 0.1 * at, augment=at % 2 == 0, size=[1, 2, 4][at % 3]) for at in range(6)]
    figure = drawn(space, *trials, best=5)
    on, off = ticks(figure)["on"], ticks(figure)["off"]
    assert places(figure, 0)[0] < places(figure, 2)[0] == on < places(figure, 4)[0] < places(figure, 1)[0]
    assert places(figure, 3)[0] == off
    assert list(ticks(figure, 1)) == ["1", "2", "4"]
    assert places(figure, 0)[1] < ticks(figure, 1)["1"] < places(figure, 3)[1]  # 1 is not True


def test_trial_without_a_setting_passes_beside_the_axis() -> None:
    figure = drawn({"x": LINEAR, "y": {"choices": ["a"]}}, trial(0, 0.1), trial(1, 0.2, x=0, y="a"))
    none = figure["ends"][2]
    assert places(figure, 0)[:2] == [none, none]
    assert none < min(places(figure, 1)[:2])
    assert [axis["gaps"] for axis in figure["axes"]] == [True, True, False]


def test_last_axis_is_the_accuracy() -> None:
    figure = drawn({"x": LINEAR}, trial(0, 0.25, x=1), trial(1, 0.75, x=1))
    left, right, _ = figure["ends"]
    assert (places(figure, 0)[-1], places(figure, 1)[-1]) == (left, right)
    assert ticks(figure, -1) == {"0.25": left, "0.5": (left + right) / 2, "0.75": right}


def test_only_ended_trials_are_drawn() -> None:
    trials = [
        *(trial(0, 0.1, x=1), trial(1, 0.2, "pruned", x=2), trial(2, 0.3, "unfinished", x=3)),
        *(trial(3, None, "failed", x=4), trial(4, 0.3, "failed", x=4)),
    ]
    assert [line["number"] for line in drawn({"x": LINEAR}, *trials)["lines"]] == [1, 0]
    assert parallel_coordinates({"x": LINEAR}, trials[:1], 0) is None


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=40), st.data())
def test_lines_are_drawn_from_the_worst_to_the_best_in_fifths(accuracies: list[float], data: st.DataObject) -> None:
    best = data.draw(st.integers(0, len(accuracies) - 1))
    figure = drawn({"x": LINEAR}, *(trial(at, each, x=at) for at, each in enumerate(accuracies)), best=best)
    lines = figure["lines"]
    assert sorted(line["number"] for line in lines) == list(range(len(accuracies)))
    assert [line["best"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["number"] == best
    assert [line["accuracy"] for line in lines[:-1]] == sorted(line["accuracy"] for line in lines[:-1])
    ordered = sorted(lines, key=lambda line: line["accuracy"])
    assert [line["group"] for line in ordered] == sorted(line["group"] for line in ordered)
    for one, other in itertools.pairwise(ordered):
        assert one["accuracy"] < other["accuracy"] or one["group"] == other["group"]
    for each in figure["key"]:
        own = [line["accuracy"] for line in lines if line["group"] == each["group"]]
        assert (each["low"], each["high"]) == (min(own), max(own))
    left, right, _ = figure["ends"]
    assert all(left <= x <= right and math.isfinite(x) for line in lines for x in places(figure, line["number"]))


def test_long_choices_are_cut_to_their_band() -> None:
    choices = [f"{at}-{'x' * 50}" for at in range(8)]
    figure = drawn({"x": {"choices": choices}}, trial(0, 0.1, x=choices[0]), trial(1, 0.2, x=choices[7]))
    assert all(len(text) < 16 and text.endswith("…") for text in ticks(figure))
