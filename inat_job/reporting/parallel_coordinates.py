"""Parallel coordinates of a search: one line a trial over all axes, from the best to the worst in five colours.

The axes lie below each other, since their names are long. Everything here is a position or a text; the template draws.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 1000
_LEFT, _RIGHT, _NONE = 250.0, 970.0, 205.0
"""Ends of an axis, and the place on it of trials without a value."""

_TOP, _ROW, _BELOW = 24, 48, 28
"""Heights in the drawing's own units, which are pixels on a wide screen."""

_GROUPS = 5
_BAND = 0.55
"""Share of the distance between two choices over which the trials of one are spread, by accuracy."""

_LETTER = 6.6
_CLOSE = 60.0
"""Width of a letter of a tick's label, and the least distance between two ticks of a range."""

Trial = Mapping[str, Any]
Axis = Mapping[str, Any]
_ACCURACY = "validation accuracy"


def parallel_coordinates(space: Mapping[str, Axis], trials: Sequence[Trial], best: int) -> dict[str, Any] | None:
    """The drawing of all trials with an `accuracy` that ended by themselves or by the pruner, None for fewer than two.

    Lines come in the order in which they are drawn: better ones over worse ones, and the trial `best` over all.
    """
    ended = [trial for trial in trials if trial["outcome"] in ("done", "pruned") and trial["accuracy"] is not None]
    if len(ended) < 2:
        return None
    ended.sort(key=lambda trial: (trial["number"] == best, trial["accuracy"], -trial["number"]))
    values = {key: [trial["values"].get(key) for trial in ended] for key in space}
    rows = [_row(key, axis, values[key]) for key, axis in space.items()]
    accuracies = [trial["accuracy"] for trial in ended]
    rows.append(_row(_ACCURACY, {"low": min(accuracies), "high": max(accuracies), "log": False}, accuracies))
    heights = [_TOP + _ROW * at for at in range(len(rows))]
    groups = _groups(accuracies)
    return {
        "width": WIDTH,
        "height": heights[-1] + _BELOW,
        "ends": (_LEFT, _RIGHT, _NONE),
        "axes": [{**row, "y": y} for row, y in zip(rows, heights, strict=True)],
        "lines": [
            {
                "points": " ".join(f"{row['at'][at]:.1f},{y}" for row, y in zip(rows, heights, strict=True)),
                "number": trial["number"],
                "accuracy": trial["accuracy"],
                "group": groups[at],
                "best": trial["number"] == best,
            }
            for at, trial in enumerate(ended)
        ],
        "key": [_range_of(group, groups, accuracies) for group in sorted(set(groups), reverse=True)],
    }


def _groups(accuracies: Sequence[float]) -> list[int]:
    """The fifth of each trial, from 0 for the worst; equal accuracies are in the same one."""
    ordered = sorted(accuracies)
    return [ordered.index(each) * _GROUPS // len(ordered) for each in accuracies]


def _range_of(group: int, groups: Sequence[int], accuracies: Sequence[float]) -> dict[str, Any]:
    own = [accuracy for each, accuracy in zip(groups, accuracies, strict=True) if each == group]
    return {"group": group, "low": min(own), "high": max(own)}


def _row(key: str, axis: Axis, values: Sequence[Any]) -> dict[str, Any]:
    """An axis: where each value is, its ticks, and whether some trials have no value on it."""
    at, ticks = _choices(axis["choices"], values) if "choices" in axis else _range(axis, values)
    return {"name": key, "at": at, "ticks": ticks, "gaps": None in values}


def _choices(choices: Sequence[Any], values: Sequence[Any]) -> tuple[list[float], list[dict[str, Any]]]:
    """Each choice is a band, in which its trials are side by side in the order of `values`."""
    step = (_RIGHT - _LEFT) / len(choices)
    middles = [_LEFT + step * (at + 0.5) for at in range(len(choices))]
    counts = [sum(_is(value, choice) for value in values) for choice in choices]
    seen = [itertools.count() for _ in choices]
    at = []
    for value in values:
        place = next((number for number, choice in enumerate(choices) if _is(value, choice)), None)
        if place is None:
            at.append(_NONE)
        else:
            share = (next(seen[place]) + 0.5) / counts[place] - 0.5
            at.append(middles[place] + _BAND * step * share)
    most = max(2, int(step / _LETTER))
    return at, [{"x": round(x, 1), "text": _short(each, most)} for x, each in zip(middles, choices, strict=True)]


def _is(value: Any, choice: Any) -> bool:
    return type(value) is type(choice) and bool(value == choice)  # 1 is not True


def _short(choice: Any, most: int) -> str:
    text = str(choice) if not isinstance(choice, bool) else "on" if choice else "off"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _range(axis: Axis, values: Sequence[Any]) -> tuple[list[float], list[dict[str, Any]]]:
    low, high = float(axis["low"]), float(axis["high"])
    log = bool(axis["log"]) and low > 0

    def place(value: float) -> float:
        if high <= low:
            return (_LEFT + _RIGHT) / 2
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return _LEFT + (_RIGHT - _LEFT) * min(max(share, 0.0), 1.0)

    inner = _decades(low, high) if log else [(low + high) / 2]
    marks = [low, *(each for each in inner if min(place(each) - _LEFT, _RIGHT - place(each)) > _CLOSE), high]
    ticks = [{"x": round(place(each), 1), "text": f"{each:.4g}"} for each in dict.fromkeys(marks)]
    return [_NONE if value is None else place(float(value)) for value in values], ticks


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(math.floor(math.log10(low)) + 1, math.ceil(math.log10(high)))]
