"""The trials of a study, as a sweep counts them: drawn, taken up, ended; each point of the space is trained once."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from optuna.exceptions import UpdateFinishedTrialError
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from inat_job import events
from inat_job.errors import UsageError
from inat_job.search import space as spaces
from inat_job.search.outcomes import SearchState, covered_s
from inat_job.search.space import Space, Value
from inat_job.search.study import draw, why_pruned
from inat_job.settings import Settings

FINGERPRINT, UNCOUNTED, REASON, FAILURES, WORK = "fingerprint", "uncounted", "reason", "failures", "work"
"""Attributes of a trial: of the settings, why it is none of the N, why it ended or rests, how often it failed so far,
and when it was at work, as pairs of seconds since 1970."""

_DRAWN = "drawn "
"""Beginning of an attribute for each fingerprint that was drawn for a trial."""

_MOST_REPEATS = 50
"""Points in a row that need no training, after which the space counts as exhausted."""

_MOST_LISTED = 2000
"""Points of a space up to which those that are left are listed."""

_FEWEST_DRAWN = 5
"""Points that need no training, after which one of those that are left follows."""

_FEWEST_FOR_IMPORTANCES = 10
"""Trials that were done, below which importances would be chance."""

_BEST_SHARE = 0.3
"""Optuna's default, the best tenth, is too few of 30 to 100 trials: chance outranks the settings that matter."""

MakeSettings = Callable[[Mapping[str, Value]], Settings]
"""The settings of a trial with these values. Raises UsageError for values that contradict each other."""


def work_s(trial: FrozenTrial) -> float:
    """The seconds in which a trial was at work."""
    return covered_s(trial.user_attrs.get(WORK, ()))


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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.study, self._space, self._make_settings, self._together = study, space, make_settings, together
        self._clock, self._points = clock, spaces.points(space, _MOST_LISTED)
        self._seen_at: dict[int, float] = {}
        self._since: dict[int, float] = {}  # when the trials that are at work here began to be
        self._exhausted: tuple[tuple[int, int], str] | None = None  # the trials as no point was left, and why
        self._contradiction = ""

    def counted(self) -> list[FrozenTrial]:
        """The trials that count towards N, whether they have ended or not; one that is only queued does not yet."""
        trials = self.study.get_trials(deepcopy=False)
        return [each for each in trials if UNCOUNTED not in each.user_attrs and each.state is not TrialState.WAITING]

    def state(self) -> SearchState:
        """The sweep so far."""
        trials = self.counted()
        values = [
            trial.value if trial.state is TrialState.COMPLETE else None for trial in trials if trial.state.is_finished()
        ]
        return SearchState(tuple(values), covered_s(each for trial in trials for each in self._work(trial)))

    def running(self) -> list[FrozenTrial]:
        """Trials that have not ended, also those whose worker was lost before all of their values were drawn."""
        return [each for each in self.counted() if each.state is TrialState.RUNNING]

    def begun_at(self, trial: FrozenTrial) -> float:
        """When a trial was begun, in seconds since 1970; if its values were never drawn, as this worker first sees it.

        Optuna's own time is in the zone of the worker that wrote it, and does not say which.
        """
        work = trial.user_attrs.get(WORK)
        return float(work[0][0]) if work else self._seen_at.setdefault(trial.number, self._clock())

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
            return None if self._is_beyond(trial, most) else self._begin(trial)
        twin = self._twin(frozen.number, frozen.user_attrs[FINGERPRINT])
        # Its worker may have been lost before it looked for one.
        if twin and not frozen.intermediate_values and (twin.number < frozen.number or twin.intermediate_values):
            self._repeat(trial, twin)
            return None
        self._since[frozen.number] = self._clock()
        return RunningTrial(frozen.number, self._make_settings(frozen.params), trial, continued=True)

    def begin(self, most: int) -> RunningTrial | None:
        """A new point of the space; None if `most` trials count, or if none is left, as `exhausted` says."""
        if self._exhausted and self._exhausted[0] == self._progress():
            return None
        why = f"each of the last {_MOST_REPEATS} points drawn was trained before"
        for drawn in range(max(_MOST_REPEATS, _FEWEST_DRAWN + len(self._points))):
            if len(self.counted()) >= most:
                return None
            if self._points and not (left := self._untrained()):
                why = "every point of the space is trained"
                break
            if self._points and drawn >= _FEWEST_DRAWN:
                self.study.enqueue_trial(left[len(self.study.get_trials(deepcopy=False)) % len(left)])
            trial = self.study.ask()
            if self._is_beyond(trial, most):
                return None
            if begun := self._begin(trial):
                return begun
        self._exhausted = self._progress(), why + (" or contradicts itself" if self._contradiction else "")
        return None

    def exhausted(self) -> str:
        """Why no point is left to train; empty while one may be, or while a trial runs.

        Raises UsageError if there was none to begin with: values that contradict each other are no trial.
        """
        if self._exhausted is None or self._exhausted[0] != self._progress() or self.running():
            return ""
        if self._contradiction and not self.counted():
            raise UsageError(f"All values drawn contradict each other, the last ones so: {self._contradiction}")
        return self._exhausted[1]

    def _progress(self) -> tuple[int, int]:
        """The trials that count and those of them that have ended: what a sampler draws depends on them."""
        counted = self.counted()
        return len(counted), sum(each.state.is_finished() for each in counted)

    def _untrained(self) -> list[dict[str, Value]]:
        """The points of a listed space that no trial has, and whose values do not contradict each other."""
        taken = {each.user_attrs[FINGERPRINT] for each in self.counted() if FINGERPRINT in each.user_attrs}
        tried = {
            self._key(each.params)
            for each in self.study.get_trials(deepcopy=False)
            if each.user_attrs.get(FINGERPRINT) in taken
            or (UNCOUNTED in each.user_attrs and FINGERPRINT not in each.user_attrs)
        }
        return [point for point in self._points if self._key(point) not in tried]

    def _key(self, point: Mapping[str, Value]) -> tuple[Value | None, ...]:
        return tuple(point.get(name) for name in self._space)

    def _begin(self, trial: Trial) -> RunningTrial | None:
        settings, contradiction = None, ""
        with self._as_one():  # which is a request for each value otherwise
            values = draw(trial, self._space)
            try:
                settings = self._make_settings(values)
            except UsageError as error:
                contradiction = str(error)
            else:
                self._since[trial.number] = self._clock()
                trial.set_user_attr(FINGERPRINT, settings.fingerprint())
                trial.set_user_attr(_DRAWN + settings.fingerprint(), True)
                trial.set_user_attr(WORK, self._work(self._frozen(trial.number)))
        frozen = self._frozen(trial.number)
        if contradiction:
            self._contradict(trial, contradiction)
        elif settings is None or frozen.state.is_finished():
            self.leave(trial)  # another worker has ended it meanwhile
        elif sum(name.startswith(_DRAWN) for name in frozen.user_attrs) > 1:
            # The worker that asked for it was lost or frozen. The values drawn last replace those of a trial at work.
            self._leave_out(trial, "two workers drew its values")
        elif twin := self._twin(trial.number, settings.fingerprint()):
            self._repeat(trial, twin)
        else:
            return RunningTrial(trial.number, settings, trial, continued=False)
        return None

    def _contradict(self, trial: Trial, why: str) -> None:
        """Leave out a trial whose values contradict each other, and say so once."""
        if not self._contradiction:
            events.warn(f"Values of the space contradict each other, and others are drawn instead: {why}")
        self._contradiction = why
        self._leave_out(trial, f"its values contradict each other: {why}")

    def _is_beyond(self, trial: Trial, most: int) -> bool:
        """Withdraw a trial if workers that asked at the same moment have begun `most` before it, or queued them."""
        before = self.study.get_trials(deepcopy=False)[: trial.number]
        if sum(UNCOUNTED not in each.user_attrs for each in before) < most:
            return False
        self._leave_out(trial, "another worker began the last trial")
        return True

    def _twin(self, number: int, fingerprint: str) -> FrozenTrial | None:
        """Another trial with the same settings, one that has ended before one that has not.

        A worker looks for it after it has stored its own fingerprint. So of workers that draw the same point at the
        same time, all but the first to store it find it, whatever their numbers are; if all find each other's, all
        withdraw, and the point is drawn again.
        """
        same = [
            each for each in self.counted() if each.user_attrs.get(FINGERPRINT) == fingerprint and each.number != number
        ]
        return min(same, key=lambda each: not each.state.is_finished(), default=None)

    def _repeat(self, trial: Trial, twin: FrozenTrial) -> None:
        """End a trial with what became of the same settings before, so that the sampler learns from it.

        Of a failed or running one it learns nothing.
        """
        why = f"the same settings as trial {twin.number}"
        if twin.state is TrialState.PRUNED:
            with self._as_one():  # the value of a pruned trial is the last of these
                for epoch, accuracy in twin.intermediate_values.items():
                    trial.report(accuracy, epoch)
            self._leave_out(trial, why, TrialState.PRUNED)
        elif twin.state is TrialState.COMPLETE:
            self._leave_out(trial, why, TrialState.COMPLETE, twin.value)
        else:
            self._leave_out(trial, why)

    def _leave_out(
        self, trial: Trial, why: str, state: TrialState = TrialState.FAIL, value: float | None = None
    ) -> None:
        with self._as_one():
            trial.set_user_attr(UNCOUNTED, why)
            self.study.tell(trial, value, state, skip_if_finished=True)
        self.leave(trial)

    def report(self, trial: Trial, accuracies: Sequence[float]) -> bool:
        """Note the validation accuracy of each epoch that is not known yet; returns whether to prune the trial.

        A trial that another worker has ended meanwhile is pruned here, as nobody needs the rest of it.
        """
        known = self._frozen(trial.number).intermediate_values
        new = {epoch: accuracy for epoch, accuracy in enumerate(accuracies, start=1) if epoch not in known}
        prune = False
        with self._as_one():
            for epoch, accuracy in new.items():
                trial.report(accuracy, epoch)
            if new:
                trial.set_user_attr(WORK, self._work(self._frozen(trial.number)))
            prune = bool(accuracies) and trial.should_prune()
        return prune or self._frozen(trial.number).state.is_finished()

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

    def complete(self, trial: Trial, accuracies: Sequence[float]) -> None:
        """Note that a trial is done, with the validation accuracy of each epoch; the best one is its value.

        They are known already, unless the worker that ran it was lost or frozen.
        """
        self.report(trial, accuracies)
        best = max(accuracies)
        reason = f"best after epoch {1 + list(accuracies).index(best)}"
        self._note(trial, reason, state=TrialState.COMPLETE, value=best)

    def prune(self, trial: Trial) -> None:
        """Note that the pruner stopped a trial, unless another worker has ended it."""
        frozen = self._frozen(trial.number)
        if frozen.state.is_finished():
            self.leave(trial)
            return
        epoch, accuracy = max(frozen.intermediate_values.items())
        self._note(trial, why_pruned(self.study.pruner, epoch, accuracy), state=TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str, failures: int) -> None:
        """Note that a trial failed for good, and how often it has."""
        self._note(trial, reason, failures, TrialState.FAIL)

    def rest(self, trial: Trial, reason: str, failures: int) -> None:
        """Note why a trial that has not ended is not at work any more, and how often it has failed so far."""
        self._note(trial, reason, failures)

    def leave(self, trial: Trial) -> None:
        """Leave a trial to the worker that holds it, or has ended it."""
        self._since.pop(trial.number, None)

    def failures(self, trial: Trial) -> int:
        """How often a trial has failed so far."""
        return int(self._frozen(trial.number).user_attrs.get(FAILURES, 0))

    def _note(
        self, trial: Trial, reason: str, failures: int = 0, state: TrialState | None = None, value: float | None = None
    ) -> None:
        """Note that a trial is not at work any more, and its end if it has a state, unless another worker ended it."""
        with self._as_one():
            trial.set_user_attr(REASON, reason)
            trial.set_user_attr(WORK, self._work(self._frozen(trial.number)))
            if failures:
                trial.set_user_attr(FAILURES, failures)
            if state:
                self.study.tell(trial, value, state, skip_if_finished=True)
        self.leave(trial)

    def _work(self, trial: FrozenTrial) -> list[list[float]]:
        """When a trial was at work; of one that is at work here, until now."""
        known = [list(each) for each in trial.user_attrs.get(WORK, ())]
        if (since := self._since.get(trial.number)) is None:
            return known
        return [each for each in known if each[0] != since] + [[since, self._clock()]]

    @contextmanager
    def _as_one(self) -> Iterator[None]:
        """Store what the block writes of a trial as one, or nothing if another worker has ended the trial."""
        with suppress(UpdateFinishedTrialError), self._together():
            yield
        while True:  # a journal refuses each write only as it is read
            with suppress(UpdateFinishedTrialError):
                self.study.get_trials(deepcopy=False)
                return

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]
