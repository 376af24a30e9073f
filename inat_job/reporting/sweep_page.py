"""A sweep's report.html: what the template shows, made of its report.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from inat_job.reporting import html
from inat_job.reporting.parallel_coordinates import parallel_coordinates
from inat_job.reporting.reproduction import changed_settings, config_file, train_command
from inat_job.search.axis_accuracy import accuracy_of

_OF_THE_RUN = ("run.output", "run.run_id", "train.devices")
"""Settings of a sweep's own runs, which say nothing about the best ones."""

_WIDTH, _HEIGHT = 100.0, 40.0
"""The plot of all trials, in the units of its own drawing."""

Report = Mapping[str, Any]


def render_sweep(report: Report, prefix: Sequence[str] = ()) -> str:
    """The page of a sweep's report. `prefix` is the words that start this program."""
    best = {"part": report["part"], "settings": report["best"]["settings"]}
    changed = [row for row in changed_settings(best) if row["setting"] not in _OF_THE_RUN]
    trials = [{**trial, "accuracy": accuracy_of(trial)} for trial in report["trials"]]
    return html.render(
        "sweep",
        {
            "report": report,
            "part": report["part"].upper(),
            "changed": [{**row, "searched": row["setting"] in report["space"]} for row in changed],
            "command": train_command(best, prefix, _OF_THE_RUN),
            "config": config_file(best, _OF_THE_RUN),
            "progress": best_so_far(trials),
            "plot": _plot(trials),
            "parallel": parallel_coordinates(report["space"], trials, report["best"]["trial"]),
            "keys": list(report["space"]),
            "trials": trials,
        },
    )


def best_so_far(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trials that were done and better than all before them, with the epochs that all had trained by then."""
    rows: list[dict[str, Any]] = []
    epochs = 0
    for trial in trials:
        epochs += len(trial["epochs"])
        value = trial["val_accuracy"]
        if value is not None and (not rows or value > rows[-1]["value"]):
            rows.append({"number": trial["number"], "value": value, "epochs": epochs})
    return rows


def _plot(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where each trial's point is, and the line of the best so far, which goes up where a trial was better."""
    values = [trial["accuracy"] for trial in trials if trial["accuracy"] is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    step, span = _WIDTH / len(trials), (high - low) or 1.0
    points: list[dict[str, Any]] = []
    line: list[str] = []
    best: float | None = None
    for at, trial in enumerate(trials):
        x = round((at + 0.5) * step, 2)
        if trial["accuracy"] is not None:
            y = round(_HEIGHT - 2 - (_HEIGHT - 4) * (trial["accuracy"] - low) / span, 2)
            points.append({"x": x, "y": y, "number": trial["number"], "outcome": trial["outcome"]})
            if trial["outcome"] == "done" and (best is None or y < best):
                line += [f"{x},{best}"] if best is not None else []
                best = y
        line += [f"{x},{best}"] if best is not None else []
    return {"points": points, "line": " ".join(line), "low": low, "high": high, "width": _WIDTH, "height": _HEIGHT}
