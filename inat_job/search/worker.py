"""A worker of a sweep: takes up what others left, begins new trials, and watches those that it runs."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import wait

from inat_job import events, signals, watchdog
from inat_job.errors import ConflictError, EndedError, Preempted
from inat_job.run.trial_link import Ended, Epochs
from inat_job.search.outcomes import Limits, Next, next_of, why_ended
from inat_job.search.trial_process import TrialProcess
from inat_job.search.trials import RunningTrial, Trials
from inat_job.settings import Settings
from inat_job.signals import StopFlag

FAILURES_IN_A_ROW = 5
"""Trials that fail one after the other, after which the sweep stops: the next would fail too."""

_POLL_S = 1.0


IsFree = Callable[[int, float], bool]
"""Whether no live job holds the run of a trial, given its number and when it was begun, in seconds since 1970."""

Start = Callable[[int, Settings, int], TrialProcess]
"""Starts the process of a trial, given its number, its settings and its slot, from 0."""


@dataclass
class _Slot:
    """A trial at work."""

    running: RunningTrial
    process: TrialProcess
    pruned: bool = False


class Worker:
    """Runs trials, up to `slots` at a time, until the sweep is over."""

    def __init__(
        self, trials: Trials, start: Start, is_free: IsFree, limits: Limits, slots: int, stop: StopFlag
    ) -> None:
        self._trials, self._start, self._is_free = trials, start, is_free
        self._limits, self._count, self._stop = limits, slots, stop
        self._slots: dict[int, _Slot] = {}

    def run(self) -> str:
        """Work until the sweep is over, and return why it is.

        Raises Preempted when stopped, once the trials have stored their checkpoints; EndedError for a fault that all
        trials have; ConflictError if too many fail in a row; UsageError for a space without a point.
        """
        try:
            while not (why := self._work()):
                pass
            return why
        finally:
            self._stop_all()

    def _work(self) -> str:
        """Do what there is to do now, and return why the sweep is over, if it is.

        A trial notes its progress itself, in its process; here it has made progress when it says something.
        """
        heard = False
        with watchdog.waiting() if self._slots else nullcontext():
            if not (why := why_ended(self._trials.state(), self._limits) or self._trials.exhausted()):
                signals.check(self._stop, "searching")
                self._fill_slots()
                heard = self._watch()
        if heard:
            watchdog.beat()
        return why

    def _fill_slots(self) -> None:
        for slot in range(self._count):
            if slot not in self._slots and (running := self._next_trial()):
                params = {name.partition(".")[2]: value for name, value in running.trial.params.items()}
                events.emit("trial", number=running.number, values=params, continued=running.continued)
                self._slots[slot] = _Slot(running, self._start(running.number, running.settings, slot))

    def _next_trial(self) -> RunningTrial | None:
        own = {slot.running.number for slot in self._slots.values()}
        for frozen in self._trials.running():
            is_free = frozen.number not in own and self._is_free(frozen.number, self._trials.begun_at(frozen))
            if is_free and (resumed := self._trials.resume(frozen, self._limits.trials)):
                return resumed
        return self._trials.begin(self._limits.trials)

    def _watch(self) -> bool:
        """Handle what the trials have to say, or wait a while where none has; returns whether one had."""
        by_connection: Mapping[object, int] = {each.process.connection: slot for slot, each in self._slots.items()}
        if not by_connection:
            signals.pause(_POLL_S, self._stop, "waiting for the trials of other workers")
            return False
        ready = wait(list(by_connection), timeout=_POLL_S)  # type: ignore[arg-type]
        for connection in ready:
            slot = self._slots[by_connection[connection]]
            if ended := self._receive(by_connection[connection]):
                self._raise_if_over(slot.running.number, ended, self._settle(slot, ended))
        return bool(ready)

    def _receive(self, number: int) -> Ended | None:
        """Answer what the trial of a slot says, or return how it has ended, and free the slot."""
        slot = self._slots[number]
        message = slot.process.receive()
        if isinstance(message, Epochs):
            slot.pruned = self._trials.report(slot.running.trial, message.accuracies) and not message.last
            slot.process.answer(slot.pruned)
            return None
        assert isinstance(message, Ended)
        del self._slots[number]
        return message

    def _settle(self, slot: _Slot, ended: Ended) -> Next:
        """Note what became of a trial, and return it.

        A trial that was killed while the worker is to stop was killed with it, as by a signal for the process group.
        """
        if ended.code > 128 and self._stop():
            ended = ended._replace(code=Preempted.exit_code)
        trial = slot.running.trial
        failures = self._trials.failures(trial)
        outcome = next_of(ended, slot.pruned, failures + ended.is_failure)
        if outcome is Next.DONE:
            self._trials.complete(trial, ended.accuracies)
        elif outcome is Next.PRUNED:
            self._trials.prune(trial)
        elif outcome is Next.FAILED:
            self._trials.fail(trial, ended.sentence, failures + ended.is_failure)
        elif ended.held:
            self._trials.leave(trial)
        else:  # a fault of all trials is no failure of this one
            self._trials.rest(trial, ended.sentence, failures + (ended.is_failure and outcome is Next.CONTINUE))
        self._tell(trial.number, ended, outcome)
        return outcome

    def _tell(self, number: int, ended: Ended, outcome: Next) -> None:
        state = self._trials.state()
        events.emit(
            "trial-end",
            number=number,
            outcome=outcome.value,
            value=ended.value,
            why=ended.sentence,
            ended=len(state.values),
            trials=self._limits.trials,
            best=state.best,
        )

    def _raise_if_over(self, number: int, ended: Ended, outcome: Next) -> None:
        if outcome is Next.END_SWEEP:
            raise EndedError(
                f"Trial {number} ended the sweep, and the same command continues it: {ended.sentence}", ended.code
            )
        if len(reasons := self._trials.failures_in_a_row()) >= FAILURES_IN_A_ROW:
            raise ConflictError(f"The last {len(reasons)} trials failed, the last one so: {reasons[0]}")

    def _stop_all(self) -> None:
        """Stop the trials that still run, each of which stores its checkpoint; they stay to be continued."""
        for slot in self._slots.values():
            slot.process.stop()
        deadline = time.monotonic() + self._grace_s()
        for number, slot in list(self._slots.items()):
            while number in self._slots and time.monotonic() < deadline:
                if slot.process.connection.poll(0.1) and (ended := self._receive(number)):
                    self._settle(slot, ended)
            if number in self._slots:
                slot.process.kill()
                trial = slot.running.trial
                self._trials.rest(trial, "killed, as it did not stop in time", self._trials.failures(trial))

    def _grace_s(self) -> float:
        settings = next(iter(self._slots.values())).running.settings if self._slots else None
        return settings.run.grace_seconds if settings else 0.0
