"""A comparison as text for a terminal."""

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from inat_job.event_text import duration

_WIDTH = 110
_CLASSES, _SETTINGS = 10, 20
"""Classes, those that differ most, and settings that the text shows at most; the page has all."""


def comparison_lines(result: Mapping[str, Any]) -> list[str]:
    """The table of runs, then each run over the base, the settings that differ, and warnings."""
    lines = _aligned([_HEAD, *(_run(row) for row in result["runs"])], left=(0, 2))
    for pair in result["pairs"]:
        lines += ["", *_pair_lines(pair)]
    if result["settings"]:
        names = [row["name"] for row in result["runs"]]
        rows = [(row["setting"], *map(_plain, row["values"])) for row in result["settings"] if row["shared"]]
        lines += ["", *_aligned([("Settings that differ", *names), *rows[:_SETTINGS]], left=range(len(names) + 1))]
        partial, left = len(result["settings"]) - len(rows), max(0, len(rows) - _SETTINGS)
        lines += [f"and {left} more"] if left else []
        lines += [f"and {partial} that not every run has, which the page lists"] if partial else []
    return lines


_HEAD = ("run", "part", "model", "test accuracy (95 %)", "val", "macro F1", "training", "device time", "cost")


def _run(row: Mapping[str, Any]) -> Sequence[str]:
    low, high = row["ci95"]
    return (
        row["name"],
        row["part"].upper(),
        row["model"],
        f"{row['accuracy']:.4f} ({low:.3f} to {high:.3f})",
        _share(row["val_accuracy"]),
        _share(row["macro_f1"]),
        _training(row),
        "-" if row["device_seconds"] is None else duration(row["device_seconds"]),
        "-" if row["cost"] is None else f"{row['cost']:.4f}",
    )


def _pair_lines(pair: Mapping[str, Any]) -> list[str]:
    low, high = pair["difference_ci95"]
    lines = [f"{pair['run']} over {pair['base']}"]
    lines += [f"  Warning     {warning}" for warning in pair["warnings"]]
    lines.append(f"  ratio       {_ratio(pair)}")
    lines.append(f"  difference  {pair['difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f})")
    if test := pair["mcnemar"]:
        only = f"{test['only_run']} images only {pair['run']} gets right, {test['only_base']} only {pair['base']}"
        lines.append(f"  McNemar     p = {test['p']:.2g}: {only}")
    lines += wrap(f"  method      {pair['method']}", _WIDTH, subsequent_indent=" " * 14)
    rows = sorted(pair["per_class"], key=lambda row: -abs(row["difference"]))[:_CLASSES]
    changes = ", ".join(f"{row['class']} {row['base']:.2f} to {row['run']:.2f}" for row in rows)
    lines += wrap(f"  recall      {changes}", _WIDTH, subsequent_indent=" " * 14) if rows else []
    return [*lines, *([f"  {pair['claim']}"] if pair["claim"] else [])]


def _ratio(pair: Mapping[str, Any]) -> str:
    if pair["ratio"] is None:
        return f"none: the accuracy of {pair['base']} is zero"
    interval = pair["ratio_ci95"]
    return f"{pair['ratio']:.4f}" + (" (95 % interval {:.4f} to {:.4f})".format(*interval) if interval else "")


def _training(row: Mapping[str, Any]) -> str:
    """The time of training; a head that trained on cached features owes theirs too."""
    if row["train_s"] is None:
        return "-"
    features = row["features_s"]
    return duration(row["train_s"]) + ("" if features is None else f" + {duration(features)} features")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value is None else str(value)


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(_cell(*each, at in left) for at, each in enumerate(zip(row, widths, strict=True))) for row in rows
    ]


def _cell(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)
