"""The trials of a study, as a sweep counts them: drawn, taken up, ended; each point of the space is trained once."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from inat_job.errors import UsageError
from inat_job.search.outcomes import Standing
from inat_job.search.space import Space, Value
from inat_job.search.study import draw
from inat_job.settings import Settings

FINGERPRINT, UNCOUNTED, REASON, FAILURES = "fingerprint", "uncounted", "reason", "failures"
"""Attributes of a trial: of the settings, why it is none of the N, why it ended, how often it failed so far."""

_MOST_REPEATS = 50
"""Points in a row that were all trained before, after which the space counts as exhausted."""

_FEWEST_FOR_IMPORTANCES = 10
"""Trials that were done, below which importances would be chance."""

_BEST_SHARE = 0.3
"""Optuna's tenth of 30 to 100 trials is so few that chance outranks a setting which decides everything."""

MakeSettings = Callable[[Mapping[str, Value]], Settings]
"""The settings of a trial with these values. Raises UsageError for values that contradict each other."""


@dataclass
class RunningTrial:
    """A trial that this worker runs."""

    number: int
    settings: Settings
    trial: Trial
    continued: bool


class Trials:
    """The trials of a study, of which at most `most` count.

    What a study writes within `together` may be stored at the end of the block, as one.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        make_settings: MakeSettings,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.study, self._space, self._make_settings, self._together = study, space, make_settings, together

    def counted(self) -> list[FrozenTrial]:
        """The trials that count towards N, whether they have ended or not; one that is only queued does not yet."""
        trials = self.study.get_trials(deepcopy=False)
        return [each for each in trials if UNCOUNTED not in each.user_attrs and each.state is not TrialState.WAITING]

    def standing(self) -> Standing:
        """The sweep so far."""
        trials = self.counted()
        values = [
            trial.value if trial.state is TrialState.COMPLETE else None for trial in trials if trial.state.is_finished()
        ]
        begun = [trial.datetime_start.timestamp() for trial in trials if trial.datetime_start]
        return Standing(tuple(values), time.time() - min(begun, default=time.time()))

    def running(self) -> list[FrozenTrial]:
        """Trials that have not ended, also those whose worker was lost before all of their values were drawn."""
        return [each for each in self.counted() if each.state is TrialState.RUNNING]

    def failures_in_a_row(self) -> list[str]:
        """The reasons of the last trials that have ended, as far back as all of them failed."""
        reasons: list[str] = []
        ended = sorted(
            (trial for trial in self.counted() if trial.datetime_complete),
            key=lambda trial: trial.datetime_complete,  # type: ignore[arg-type, return-value]
        )
        for trial in reversed(ended):
            if trial.state is not TrialState.FAIL:
                break
            reasons.append(str(trial.user_attrs.get(REASON, "")))
        return reasons

    def resume(self, frozen: FrozenTrial, most: int) -> RunningTrial | None:
        """Take up a trial that another worker began, None if it needs no training: see `begin`."""
        trial = Trial(self.study, frozen._trial_id)
        if FINGERPRINT not in frozen.user_attrs:
            with suppress(UpdateFinishedTrialError):  # another worker has ended it meanwhile
                return None if self._is_beyond(trial, most) else self._begin(trial)
            return None
        return RunningTrial(frozen.number, self._make_settings(frozen.params), trial, continued=True)

    def begin(self, most: int) -> RunningTrial | None:
        """A new point of the space, or None once `most` trials count. Raises UsageError for an exhausted space."""
        for _ in range(_MOST_REPEATS):
            if len(self.counted()) >= most:
                return None
            trial = self.study.ask()
            if self._is_beyond(trial, most):
                return None
            with self._together():  # which is a request for each value otherwise
                begun = self._begin(trial)
            if begun:
                return begun
        raise UsageError(f"The last {_MOST_REPEATS} points were all trained before: widen --space, or lower --trials.")

    def _begin(self, trial: Trial) -> RunningTrial | None:
        values = draw(trial, self._space)
        try:
            settings = self._make_settings(values)
        except UsageError as error:
            self.fail(trial, str(error))
            return None
        fingerprint = settings.fingerprint()
        if twin := self._twin(trial, fingerprint):
            self._repeat(trial, twin)
            return None
        trial.set_user_attr(FINGERPRINT, fingerprint)
        return RunningTrial(trial.number, settings, trial, continued=False)

    def _is_beyond(self, trial: Trial, most: int) -> bool:
        """Withdraw a trial if workers that asked at the same moment have begun `most` before it."""
        before = [each for each in self.counted() if each.number < trial.number]
        if len(before) < most:
            return False
        self._leave_out(trial, TrialState.FAIL, "another worker began the last trial")
        return True

    def _twin(self, trial: Trial, fingerprint: str) -> FrozenTrial | None:
        same = (each for each in self.counted() if each.user_attrs.get(FINGERPRINT) == fingerprint)
        return next((each for each in same if each.number != trial.number), None)

    def _repeat(self, trial: Trial, twin: FrozenTrial) -> None:
        """End a trial with what became of the same settings before, so that the sampler learns from it."""
        known = twin.state is TrialState.COMPLETE
        state = TrialState.COMPLETE if known else TrialState.FAIL
        self._leave_out(trial, state, f"the same settings as trial {twin.number}", twin.value if known else None)

    def _leave_out(self, trial: Trial, state: TrialState, why: str, value: float | None = None) -> None:
        trial.set_user_attr(UNCOUNTED, why)
        self.study.tell(trial, value, state)

    def report(self, trial: Trial, accuracies: Sequence[float]) -> bool:
        """Note the validation accuracy of each epoch that is not known yet; returns whether to prune the trial."""
        known = self._frozen(trial.number).intermediate_values
        for epoch, accuracy in enumerate(accuracies, start=1):
            if epoch not in known:
                trial.report(accuracy, epoch)
        return bool(accuracies) and trial.should_prune()

    def importances(self) -> dict[str, float]:
        """The share of each setting in how good the trials are, the largest first; none for too few trials.

        PED-ANOVA of Watanabe et al., 2023: what the best trials have in common, `_BEST_SHARE` of all.
        """
        done = [trial for trial in self.counted() if trial.state is TrialState.COMPLETE]
        if len(done) < _FEWEST_FOR_IMPORTANCES:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental
            shares = get_param_importances(
                self.study, evaluator=PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE)
            )
        return {key: round(share, 4) for key, share in shares.items() if math.isfinite(share)}

    def complete(self, trial: Trial, value: float) -> None:
        """Note the best validation accuracy of a trial that is done."""
        self._end(trial, TrialState.COMPLETE, value)

    def prune(self, trial: Trial) -> None:
        """Note that the pruner stopped a trial."""
        self._end(trial, TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str) -> None:
        """Note that a trial failed for good."""
        self._set(trial, REASON, reason)
        self._end(trial, TrialState.FAIL)

    def add_failure(self, trial: Trial, reason: str) -> int:
        """Note a failure that another try may cure; returns how many there are."""
        count = int(self._frozen(trial.number).user_attrs.get(FAILURES, 0)) + 1
        self._set(trial, FAILURES, count)
        self._set(trial, REASON, reason)
        return count

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _set(self, trial: Trial, name: str, value: Any) -> None:
        if not self._frozen(trial.number).state.is_finished():
            trial.set_user_attr(name, value)

    def _end(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        """End a trial, unless the worker that took it over has ended it."""
        self.study.tell(trial, value, state, skip_if_finished=True)
