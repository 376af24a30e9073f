"""The report of a sweep: what was tried and what became of it, the best settings, and their test."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from optuna.trial import FrozenTrial, TrialState

from inat_job.search.axis_accuracy import by_value
from inat_job.search.space import Axis, Value
from inat_job.search.trials import REASON, work_s

SCHEMA_VERSION = 1
_NAMES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}


@dataclass(frozen=True)
class Best:
    """The trial with the best validation accuracy, of those that were done, and after how many epochs it had that."""

    number: int
    values: dict[str, Value]
    val: float
    epochs: int


@dataclass(frozen=True)
class Retrained:
    """The best settings, trained again with a seed: where, and the accuracies, without validation for a final run."""

    seed: int
    run: str
    val: float | None
    test: float

    @classmethod
    def of(cls, seed: int, run: str, report: Mapping[str, Any]) -> Self:
        """From the run's report."""
        return cls(seed, run, report["val"] and report["val"]["accuracy"], report["test"]["accuracy"])


@dataclass(frozen=True)
class SweepRecord:
    """A sweep that is over: what was asked for, why it is over, and its trials, of up to `epochs` epochs each."""

    part: str
    sweep_id: str
    asked: Mapping[str, Any]
    why: str
    space: Mapping[str, Axis]
    trials: Sequence[FrozenTrial]
    importances: Mapping[str, float]
    epochs: int

    @property
    def best(self) -> Best:
        """The best trial, the first of equals. At least one was done."""
        done = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        best = max(done, key=lambda trial: (trial.value or 0.0, -trial.number))
        # A trial that its worker could not report has no accuracies by epoch.
        by_epoch = best.intermediate_values or {int(best.params.get("train.epochs", self.epochs)): 0.0}
        epochs = max(by_epoch.items(), key=lambda each: (each[1], -each[0]))[0]
        return Best(best.number, dict(best.params), float(best.value or 0.0), epochs)


def build(
    record: SweepRecord, retrained: Sequence[Retrained], settings: Mapping[str, Any], device: str | None
) -> dict[str, Any]:
    """The content of a sweep's report.json; `settings` are the best, complete, and `device` is what trained them."""
    best, space = record.best, {key: axis.as_dict() for key, axis in record.space.items()}
    trials = [_trial(trial) for trial in record.trials]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "sweep",
        "status": "done",
        "part": record.part,
        "run_id": record.sweep_id,
        "asked": dict(record.asked),
        "why": record.why,
        "counts": _counts(record.trials),
        **_compute(record, trials),
        "device": device,
        "best": {
            "trial": best.number,
            "values": best.values,
            "val_accuracy": best.val,
            "epochs": best.epochs,
            "settings": settings,
        },
        "retrained": [
            {"seed": each.seed, "run": each.run, "val_accuracy": each.val, "test_accuracy": each.test}
            for each in retrained
        ],
        "test": _spread([each.test for each in retrained]),
        "importances": dict(record.importances),
        "space": space,
        "axes": {key: by_value(key, axis, trials) for key, axis in space.items()},
        "trials": trials,
    }


def sentence(report: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    best, test, count = report["best"], report["test"], len(report["trials"])
    chosen = f"Trial {best['trial']} of {count} has the best validation accuracy, {best['val_accuracy']:.4f}"
    if test is None:
        return f"{chosen}; it was not trained again."
    spread = f", from {test['lowest']:.4f} to {test['highest']:.4f}" if test["n"] > 1 else ""
    seeds = f"{test['n']} seeds" if test["n"] > 1 else "one seed"
    images = f" for {best['epochs']} epochs and without validation" if report["asked"]["final"] else ""
    return f"{chosen}. Trained again with {seeds}{images}, its test accuracy is {test['mean']:.4f}{spread}."


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    names = [_NAMES[trial.state] for trial in trials]
    return {name: names.count(name) for name in dict.fromkeys(_NAMES.values())}


def _compute(record: SweepRecord, trials: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, float]]:
    """Epochs and seconds that all trials trained, and those that the pruned ones did not, had their epochs gone on."""
    epochs, seconds = {"spent": 0, "saved": 0}, {"spent": 0.0, "saved": 0.0}
    for trial in trials:
        trained, spent = len(trial["epochs"]), trial["seconds"]
        epochs["spent"] += trained
        seconds["spent"] += spent
        if trial["outcome"] == _NAMES[TrialState.PRUNED]:
            saved = int(trial["values"].get("train.epochs", record.epochs)) - trained
            epochs["saved"] += saved
            seconds["saved"] += saved * spent / max(trained, 1)
    return {"epochs": epochs, "seconds": {name: round(value, 3) for name, value in seconds.items()}}


def is_of(report: Any, asked: Mapping[str, Any]) -> bool:
    """Whether a stored value is the report of a sweep that is over and was asked for the same."""
    return isinstance(report, dict) and report.get("kind") == "sweep" and report.get("asked") == dict(asked)


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "sd": deviation,
        "lowest": min(values),
        "highest": max(values),
    }


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "run": f"trials/{trial.number}",
        "outcome": _NAMES[trial.state],
        "why": trial.user_attrs.get(REASON),
        "val_accuracy": trial.value if trial.state is TrialState.COMPLETE else None,
        "epochs": [value for _, value in sorted(trial.intermediate_values.items())],
        "seconds": round(work_s(trial), 3),
        "values": dict(trial.params),
    }
