"""The points of a search: none is trained twice, whichever worker draws it, and a search without new points ends."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from inat_job import events
from inat_job.errors import UsageError
from inat_job.search.space import PART_A, Axis, Space, Value, one_of, points, real, whole
from inat_job.search.study import PerTrialSampler, make_pruner
from inat_job.search.trials import REASON, UNCOUNTED, WORK, RunningTrial, Trials
from inat_job.settings import Settings
from tests.search.toy_worker import make_settings, trials_in

optuna.logging.set_verbosity(optuna.logging.ERROR)

SMALL: Space = {"train.lr": one_of(1e-3, 2e-3, 4e-3)}
_FOREVER = 1e9


def trials_of(
    space: Space = SMALL,
    make: Callable[[Mapping[str, Value]], Settings] = make_settings,
    storage: InMemoryStorage | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    pruner: str = "none",
    sampler: str = "tpe",
) -> Trials:
    study = optuna.create_study(
        study_name="s",
        storage=storage,
        sampler=PerTrialSampler(sampler, 0, {}),
        pruner=make_pruner(pruner),
        direction="maximize",
        load_if_exists=True,
    )
    return Trials(study, space, make, clock=clock)


def begun(trials: Trials, most: int = 99) -> RunningTrial:
    running = trials.begin(most)
    assert running
    return running


def blind_workers(folder: Path, seeds: tuple[int, int] = (0, 0), **options: Any) -> list[Trials]:
    """Two workers that have just read the study, and see what the other writes only as they write themselves."""
    both = [trials_in(folder, seed=seed, stale_s=_FOREVER, **options) for seed in seeds]
    for trials in both:
        trials.counted()
    return both


def test_points_of_a_space() -> None:
    space = {"a": one_of("x", "y"), "b": whole(1, 3), "c": Axis(choices=(0, 1), only_with=("a", ("x",)))}
    listed = points(space, 9)
    assert len(listed) == 9
    assert {"a": "x", "b": 2, "c": 1} in listed
    assert {"a": "y", "b": 2} in listed
    assert points(space, 8) == []
    assert points({**space, "d": real(0.0, 1.0)}, 99) == []
    assert points({"a": whole(1, 10**12), "b": whole(1, 10**12)}, 99) == []
    assert points(PART_A, 99) == []


def test_small_space_is_trained_whole_and_then_exhausted() -> None:
    trials = trials_of()
    for _ in range(3):
        assert trials.exhausted() == ""
        trials.complete(begun(trials).trial, [0.5])
    assert trials.begin(99) is None
    assert trials.exhausted() == "every point of the space is trained"
    assert sorted(each.params["train.lr"] for each in trials.counted()) == [1e-3, 2e-3, 4e-3]
    assert len(trials.study.trials) <= 3 * 7  # some draws by the sampler, and then one of those that are left


def test_search_waits_for_trials_that_run_before_it_is_exhausted() -> None:
    """Also for those of another worker; and it draws only after something new is known."""
    one = make_settings({})
    trials = trials_of({"train.lr": real(1e-4, 1e-1)}, lambda values: one)
    running = begun(trials)
    for _ in range(3):
        assert trials.begin(99) is None
        assert trials.exhausted() == ""
        assert len(trials.study.trials) == 51
    trials.complete(running.trial, [0.5])
    assert trials.exhausted() == ""
    assert trials.begin(99) is None
    assert trials.exhausted() == "each of the last 50 points drawn was trained before"
    assert len(trials.study.trials) == 101
    assert trials.begin(1) is None


def refuse(values: Mapping[str, Value], *refused: float) -> Settings:
    if values["train.lr"] in refused:
        raise UsageError("--lr contradicts itself.")
    return make_settings(dict(values))


def test_values_that_contradict_each_other_are_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(events, "warn", lambda message, **_: warnings.append(message))
    trials = trials_of(make=lambda values: refuse(values, 1e-3, 2e-3))
    trials.complete(begun(trials).trial, [0.5])
    assert trials.begin(99) is None
    assert trials.exhausted() == "every point of the space is trained or contradicts itself"
    assert ([each.params for each in trials.counted()], trials.failures_in_a_row()) == ([{"train.lr": 4e-3}], [])
    left_out = [each for each in trials.study.trials if each.params["train.lr"] != 4e-3]
    assert {each.user_attrs[UNCOUNTED] for each in left_out} == {
        "its values contradict each other: --lr contradicts itself."
    }
    assert len(warnings) == 1


@pytest.mark.parametrize("space", [SMALL, {"train.lr": real(1e-4, 1e-1)}])
def test_space_of_contradictions_is_a_mistake(space: Space) -> None:
    def make(values: Mapping[str, Value]) -> Settings:
        return refuse(values, float(values["train.lr"]))

    trials = trials_of(space, make)
    assert trials.begin(99) is None
    with pytest.raises(UsageError, match="All values drawn contradict each other, the last ones so: --lr contradicts"):
        trials.exhausted()


@pytest.mark.parametrize("end", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_repeat_is_told_what_became_of_the_point(end: TrialState) -> None:
    trials = trials_of({"train.lr": one_of(1e-3)}, pruner="asha")
    first = begun(trials).trial
    trials._points = []  # so that it is drawn again
    trials.report(first, [0.25, 0.125])
    if end is TrialState.COMPLETE:
        trials.complete(first, [0.25, 0.125])
    elif end is TrialState.PRUNED:
        trials.prune(first)
    else:
        trials.fail(first, "It failed.", 1)
    assert trials.begin(99) is None
    repeat = trials.study.trials[1]
    assert (repeat.state, repeat.user_attrs[UNCOUNTED]) == (end, "the same settings as trial 0")
    assert repeat.value == {TrialState.COMPLETE: 0.25, TrialState.PRUNED: 0.125, TrialState.FAIL: None}[end]
    assert repeat.intermediate_values == ({1: 0.25, 2: 0.125} if end is TrialState.PRUNED else {})


@pytest.mark.parametrize(("pruner", "least"), [("asha", "the best third"), ("median", "the median")])
def test_every_end_has_its_reason(pruner: str, least: str) -> None:
    trials = trials_of(pruner=pruner)
    done, pruned, failed = (begun(trials).trial for _ in range(3))
    trials.rest(done, "The connection was lost.", 1)
    trials.complete(done, [0.5, 0.75, 0.75])
    trials.report(pruned, [0.25, 0.125])
    trials.prune(pruned)
    trials.fail(failed, "Too little memory.", 1)
    assert [each.user_attrs[REASON] for each in trials.counted()] == [
        "best after epoch 2",
        f"below {least} of the trials at epoch 2, with 0.1250",
        "Too little memory.",
    ]
    assert (trials.counted()[0].value, trials.counted()[0].intermediate_values) == (0.75, {1: 0.5, 2: 0.75, 3: 0.75})


def test_time_without_work_does_not_count() -> None:
    """Neither between two workers, nor after the last sign of one that was killed; parallel work counts once."""
    storage, now = InMemoryStorage(), 1000.0
    first = trials_of(storage=storage, clock=lambda: now)
    a, b = begun(first).trial, begun(first).trial
    now = 1010.0
    assert first.report(a, [0.5]) is False
    now = 1012.0
    first.rest(b, "Stopped.", 0)
    now = 1014.0  # where its worker is killed
    assert first.state().seconds == 14.0
    now = 9000.0
    second = trials_of(storage=storage, clock=lambda: now)
    assert second.state().seconds == 12.0
    for frozen in second.running():
        assert second.resume(frozen, 99)
    now = 9003.0
    assert second.state().seconds == 15.0
    second.complete(a, [0.5, 0.75])
    second.fail(b, "It failed.", 1)
    now = 9999.0
    assert second.state().seconds == 15.0
    assert [each.user_attrs[WORK] for each in second.counted()] == [
        [[1000.0, 1010.0], [9000.0, 9003.0]],
        [[1000.0, 1012.0], [9000.0, 9003.0]],
    ]


@pytest.mark.parametrize("where", ["memory", "journal"])
def test_trial_that_another_worker_has_ended_stays_so(tmp_path: Path, where: str) -> None:
    """A journal refuses what is written of it as it is read, which must not fail what is done next."""
    storage = InMemoryStorage()
    in_memory = where == "memory"
    frozen = trials_of(storage=storage, pruner="asha") if in_memory else trials_in(tmp_path, pruner="asha")
    trial = begun(frozen).trial
    other = trials_of(storage=storage) if in_memory else trials_in(tmp_path)
    resumed = other.resume(other.running()[0], 99)
    assert resumed
    other.complete(resumed.trial, [0.5, 0.75])
    assert frozen.report(trial, [0.5, 0.75, 0.25]) is True  # nobody needs the rest of it
    frozen.prune(trial)
    frozen.rest(trial, "Stopped.", 3)
    frozen.fail(trial, "It failed.", 3)
    begun(frozen)
    ended, _ = (other if in_memory else trials_in(tmp_path)).counted()
    assert (ended.value, ended.intermediate_values) == (0.75, {1: 0.5, 2: 0.75})
    assert (ended.user_attrs[REASON], "failures" in ended.user_attrs) == ("best after epoch 2", False)


class Turns:
    """Lets threads read and write a storage in a given order, an operation each time; afterwards one by one."""

    def __init__(self, order: list[int], threads: int) -> None:
        self._order, self._changed, self._working = order, threading.Condition(), set(range(threads))

    def wait(self) -> None:
        name = threading.current_thread().name
        with self._changed:
            if not name.isdecimal():
                return
            assert self._changed.wait_for(lambda: self._next() == int(name), timeout=60)
            if self._order:
                self._order.pop(0)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._working.remove(int(threading.current_thread().name))
            self._changed.notify_all()

    def _next(self) -> int:
        while self._order and self._order[0] not in self._working:
            self._order.pop(0)
        return self._order[0] if self._order else min(self._working)


class SharedStorage(InMemoryStorage):
    """A storage whose threads take turns."""

    turns = Turns([], 0)

    def create_new_trial(self, *args: object, **words: object) -> int:
        self.turns.wait()
        return super().create_new_trial(*args, **words)  # type: ignore[arg-type]

    def get_all_trials(self, *args: object, **words: object) -> list[optuna.trial.FrozenTrial]:
        self.turns.wait()
        return super().get_all_trials(*args, **words)  # type: ignore[arg-type]

    def set_trial_user_attr(self, *args: object) -> None:
        self.turns.wait()
        super().set_trial_user_attr(*args)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2), max_size=60))
def test_workers_that_draw_one_point_at_once_train_it_once(order: list[int]) -> None:
    storage = SharedStorage()
    teams = [trials_of({"train.lr": one_of(1e-3)}, storage=storage, sampler="random") for _ in range(3)]
    storage.turns, found = Turns(order, 3), list[RunningTrial]()

    def work(trials: Trials) -> None:
        try:
            if running := trials.begin(99):
                found.append(running)
        finally:
            storage.turns.end()

    threads = [threading.Thread(target=work, args=(each,), name=str(number)) for number, each in enumerate(teams)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if not found:  # all have withdrawn, and the next one draws it
        found.append(begun(teams[0]))
    assert sorted(each.number for each in found) == [each.number for each in teams[0].counted()]
    assert len(found) == 1


def test_trial_that_another_worker_has_ended_before_its_first_epoch_is_pruned_here() -> None:
    storage = InMemoryStorage()
    frozen = begun(trials_of(storage=storage)).trial
    other = trials_of(storage=storage)
    [seen] = other.running()
    resumed = other.resume(seen, 9)
    assert resumed
    other.fail(resumed.trial, "It failed.", 1)
    late = trials_of(storage=storage)
    assert late.report(frozen, []) is True
    late.prune(frozen)
    [trial] = late.counted()
    assert (trial.state, trial.user_attrs[REASON]) == (TrialState.FAIL, "It failed.")


def test_time_at_which_a_trial_was_begun_has_no_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = trials_of(clock=lambda: 1000.0)
    begun(trials)
    undrawn = trials.study.ask()
    times = []
    for zone in ("UTC", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        times.append([trials.begun_at(each) for each in trials.running()])
    monkeypatch.undo()
    time.tzset()
    assert times == [[1000.0, 1000.0]] * 2
    later = trials_of(storage=trials.study._storage, clock=lambda: 9000.0)  # type: ignore[arg-type]
    assert [later.begun_at(each) for each in later.running() if each.number == undrawn.number] == [9000.0]


def test_workers_that_start_at_the_same_moment_have_one_default(tmp_path: Path) -> None:
    """So the numbers of the trials have no gap, and each number the values that it has with one worker."""
    default = {"train.lr": 2e-3}
    one, other = blind_workers(tmp_path / "two", first=default)
    assert one.study.get_trials() == []  # opening a study adds nothing to it
    begun_at_once = [begun(trials) for trials in (one, other)]
    assert [each.number for each in begun_at_once] == [0, 1]
    alone = trials_in(tmp_path / "one", first=default)
    assert [each.trial.params for each in begun_at_once] == [begun(alone).trial.params for _ in range(2)]
    assert begun_at_once[0].trial.params == default


def test_trial_that_two_workers_draw_is_left_out(tmp_path: Path) -> None:
    """Its worker was lost, both see that, and the second replaces the values that the first already trains with."""
    trials_in(tmp_path).study.ask()
    first, second = blind_workers(tmp_path, seeds=(0, 1))
    running = first.resume(first.running()[0], most=9)
    assert running
    assert second.resume(second.running()[0], most=9) is None
    [trial] = trials_in(tmp_path).study.get_trials()
    assert (trial.state, trial.user_attrs[UNCOUNTED]) == (TrialState.FAIL, "two workers drew its values")
    assert first.report(running.trial, [0.5])  # the first is told to end it


def test_trial_that_two_workers_draw_alike_stays(tmp_path: Path) -> None:
    trials_in(tmp_path).study.ask()
    for trials in blind_workers(tmp_path):
        assert trials.resume(trials.running()[0], most=9)
    assert [trial.state for trial in trials_in(tmp_path).counted()] == [TrialState.RUNNING]


def test_queued_point_counts_for_a_worker_that_asks_at_the_same_moment(tmp_path: Path) -> None:
    """Otherwise it and the one that queued the point would both begin the last trial."""
    one, other = blind_workers(tmp_path)
    one.study.enqueue_trial({"train.lr": 2e-3})
    assert other.begin(most=1) is None
    assert begun(one, most=1).number == 0
    assert [trial.number for trial in trials_in(tmp_path).counted()] == [0]
