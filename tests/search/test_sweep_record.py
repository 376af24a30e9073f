"""What a sweep found: its best trial, and what all trials cost."""

import optuna
import pytest
from optuna.trial import TrialState

from inat_job.search.space import one_of
from inat_job.search.sweep_report import SweepRecord, build
from inat_job.search.trials import WORK


@pytest.mark.parametrize(("by_epoch", "epochs"), [({1: 0.4, 2: 0.5, 3: 0.5}, 2), ({}, 9)])
def test_best_epoch_of_the_best_trial(by_epoch: dict[int, float], epochs: int) -> None:
    """A worker that was frozen may have reported no epoch of a trial that is done."""
    trial = optuna.trial.create_trial(value=0.5, intermediate_values=by_epoch)
    record = SweepRecord("a", "s", {}, "", {}, [trial], {}, epochs=9)
    assert (record.best.val, record.best.epochs) == (0.5, epochs)


def made_trial(state: TrialState, epochs: int, seconds: float, whole: int | None = None) -> optuna.trial.FrozenTrial:
    """A trial that was at work for some seconds, with a pause."""
    return optuna.trial.create_trial(
        state=state,
        value=0.5 if state is TrialState.COMPLETE else None,
        params={"train.epochs": whole} if whole else {},
        distributions={"train.epochs": optuna.distributions.IntDistribution(1, 99)} if whole else {},
        intermediate_values=dict.fromkeys(range(1, epochs + 1), 0.5),
        user_attrs={WORK: [[100.0, 101.0], [500.0, 499.0 + seconds]]},
    )


def test_compute_spent_and_saved() -> None:
    """Pruning saves the epochs that were not trained, at the trial's own pace; failed trials save nothing."""
    trials = [
        made_trial(TrialState.COMPLETE, 9, 90.0),
        made_trial(TrialState.PRUNED, 3, 60.0),
        made_trial(TrialState.PRUNED, 1, 5.0, whole=4),
        made_trial(TrialState.FAIL, 2, 7.0),
    ]
    record = SweepRecord("a", "s", {}, "", {"model.pooling": one_of("gap")}, trials, {}, epochs=9)
    report = build(record, [], {}, "cpu")
    assert report["epochs"] == {"spent": 15, "saved": 6 + 3}
    assert report["seconds"] == {"spent": 162.0, "saved": 6 * 20.0 + 3 * 5.0}
