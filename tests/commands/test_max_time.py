"""Runs that `--max-time` shortens, on a clock that only training steps move on."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inat_job.commands import train
from inat_job.errors import Preempted
from inat_job.models.classifier import Classifier
from inat_job.settings import Settings
from inat_job.training import time_limit
from tests.harness.job_runs import Make, StopAfter, model_of, report_of, run

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


def steps_take(seconds: Callable[[int], float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have a clock that the n-th training step moves on by `seconds(n)`, and nothing else; returns its time."""
    now, count = [0.0], itertools.count()

    def step(self: Classifier, *args: object) -> object:
        now[0] += seconds(next(count))
        return training_step(self, *args)

    training_step: Callable[..., object] = Classifier.training_step
    monkeypatch.setattr(time_limit, "clock", lambda: now[0])
    monkeypatch.setattr(Classifier, "training_step", step)
    return now


@pytest.fixture
def second_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_take(lambda _: 1.0, monkeypatch)


def rows_of(settings: Settings) -> list[dict[str, Any]]:
    folder = Path(settings.run.output) / "r"
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def manifest_of(settings: Settings, step: int) -> dict[str, Any]:
    return json.loads((Path(settings.run.output) / f"r/checkpoints/{step}.json").read_text())


@pytest.mark.usefixtures("second_per_step")
@pytest.mark.parametrize("final", ["false", pytest.param("true", marks=pytest.mark.soak)])
def test_learning_rate_reaches_zero_with_max_time(final: str, settings: Make, tmp_path: Path) -> None:
    """Of 30 epochs of 6 or 7 steps, 41 steps fit into 42 s; a run that is stopped on its way is the same to the bit."""
    changes = {"train__epochs": "30", "train__max_time": "42", "train__final": final}
    changes |= {"train__mixup": "0.2", "train__mix_until": "0.5"}
    whole = settings(run__output=str(tmp_path / "whole"), **changes)
    run(whole)
    assert report_of(whole)["history"] == [{"started_step": 0, "ended_step": 41, "why": "max-time"}]
    rates = [row["lr"] for row in rows_of(whole) if "lr" in row]
    assert max(rates) > 1e-3
    assert rates[-1] < 1e-4 * 2
    stopped, attempts = settings(**changes), 0
    while not (Path(stopped.run.output) / "r" / "report.json").exists():
        try:
            run(stopped, stop_after=10 + attempts)
        except Preempted:
            attempts += 1
    assert attempts > 2
    assert model_of(stopped) == model_of(whole)
    assert rows_of(stopped) == rows_of(whole)


@pytest.mark.usefixtures("second_per_step")
@pytest.mark.parametrize("epochs", ["3", "1"])
def test_max_time_within_the_first_epoch(epochs: str, settings: Make) -> None:
    """An epoch has 24 steps, and there are 20 s: after 16 steps it is decided to anneal in the 3 that are left.

    A run is not finished by a last epoch that is cut short.
    """
    made = settings(train__epochs=epochs, train__batch_size="2", train__max_time="20")
    run(made)
    manifest = manifest_of(made, 19)
    assert (manifest["cuts"], manifest["ended"]) == ([[16, 19]], "max-time")
    assert report_of(made)["history"][-1] == {"started_step": 0, "ended_step": 19, "why": "max-time"}


@pytest.mark.soak
def test_run_is_lengthened_after_a_slow_first_epoch(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 s, the first epoch's 6 steps take 5 s each: 13 more would fit, but then a step takes a second."""
    steps_take(lambda step: 5.0 if step < 6 else 1.0, monkeypatch)
    made = settings(train__epochs="30", train__max_time="100")
    run(made)
    assert report_of(made)["history"] == [{"started_step": 0, "ended_step": 74, "why": "max-time"}]
    cuts = manifest_of(made, 74)["cuts"]
    assert (cuts[0], cuts[-1]) == ([6, 19], [18, 74])
    rates = [row["lr"] for row in rows_of(made) if "lr" in row]
    assert min(rates) == rates[-1] > 0
    assert rates[-1] < 1e-4


def test_run_that_has_ended_is_not_lengthened_after_a_resume(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation takes 5 s. The last one is stopped, and quick the second time: two steps more would fit then."""
    now, stop = steps_take(lambda _: 1.0, monkeypatch), StopAfter(10**9)

    def slow(self: Classifier, batch: Any, index: int) -> None:
        validation_step(self, batch, index)
        if not stop.why:
            now[0] += 0.0 if index else 5.0
            if self.trainer.global_step == self.schedule.end:
                stop.set("a test")

    validation_step: Callable[..., None] = Classifier.validation_step
    monkeypatch.setattr(Classifier, "validation_step", slow)
    made = settings(train__epochs="30", train__max_time="40")
    with pytest.raises(Preempted):
        train.run(made, stop, time.perf_counter())
    run(made)
    manifest = manifest_of(made, 19)
    assert (manifest["cuts"], len(manifest["accuracies"])) == ([[6, 19]], 4)
    assert report_of(made)["history"][-1]["ended_step"] == 19
