"""What a sweep found: its best trial."""

import optuna
import pytest

from inat_job.search.sweep_report import SweepRecord


@pytest.mark.parametrize(("by_epoch", "epochs"), [({1: 0.4, 2: 0.5, 3: 0.5}, 2), ({}, 9)])
def test_best_epoch_of_the_best_trial(by_epoch: dict[int, float], epochs: int) -> None:
    """A worker that was frozen may have reported no epoch of a trial that is done."""
    trial = optuna.trial.create_trial(value=0.5, intermediate_values=by_epoch)
    record = SweepRecord("a", "s", {}, "", {}, [trial], {}, epochs=9)
    assert (record.best.val, record.best.epochs) == (0.5, epochs)
