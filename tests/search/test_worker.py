"""Workers of a sweep, with real processes and signals, and trials that train nothing."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from inat_job import watchdog
from inat_job.errors import ConflictError, EndedError, Preempted, TransientError
from inat_job.run.trial_link import Ended, Epochs
from inat_job.search import trial_process
from inat_job.search import worker as worker_module
from inat_job.search.journal import FOLDER
from inat_job.search.outcomes import Limits
from inat_job.search.space import PART_A, one_of
from inat_job.search.study import database_errors, open_storage
from inat_job.search.trials import FAILURES, REASON, UNCOUNTED, Trials
from inat_job.search.worker import _Slot
from inat_job.signals import StopFlag
from tests.search.postgresql import Postgresql, postgresql_server
from tests.search.toy_trial import Toy, accuracy, is_free
from tests.search.toy_worker import LEASE_S, READY, trials_in, worker

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(autouse=True)
def _nothing_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_process, "PRELOADED", ())


def states(folder: Path) -> list[TrialState]:
    return [trial.state for trial in trials_in(folder).counted()]


def epochs_of(folder: Path, number: int) -> list[dict]:
    path = folder / "trials" / str(number) / "epochs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def close(trials: Trials) -> None:
    """Close the connections of a study in a database, as the end of a worker does."""
    engine = getattr(getattr(trials.study._storage, "_backend", None), "engine", None)
    if engine:
        engine.dispose()


def check_every_trial(folder: Path, count: int, database: str | None = None) -> None:
    """Every trial ended once, after each of its epochs once, with the value that its settings have."""
    study = trials_in(folder, database=database)
    trials = study.counted()
    close(study)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * count
    for trial in trials:
        expected = [accuracy(trial.params["train.lr"], epoch) for epoch in (1, 2, 3)]
        assert [each["accuracy"] for each in epochs_of(folder, trial.number)] == expected
        assert trial.value == max(expected)
        assert trial.intermediate_values == dict(enumerate(expected, start=1))


@pytest.mark.parametrize("slots", [1, 3])
def test_sweep_runs_each_trial_once(tmp_path: Path, slots: int) -> None:
    assert worker(tmp_path, Limits(7), slots).run() == "all 7 trials have ended"
    check_every_trial(tmp_path, 7)


def test_number_of_trials_is_the_total(tmp_path: Path) -> None:
    worker(tmp_path, Limits(3)).run()
    worker(tmp_path, Limits(3)).run()
    assert len(states(tmp_path)) == 3
    worker(tmp_path, Limits(5)).run()
    check_every_trial(tmp_path, 5)


def test_single_trial_is_the_default(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, first={"train.lr": 2e-3})
    worker(tmp_path, Limits(1), trials=trials).run()
    [trial] = trials.counted()
    assert (trial.params, trial.state) == ({"train.lr": 2e-3}, TrialState.COMPLETE)


def test_target_ends_the_sweep(tmp_path: Path) -> None:
    assert worker(tmp_path, Limits(50, target=0.0)).run() == "a trial reached 0"
    assert len(states(tmp_path)) == 1


def test_patience_ends_the_sweep(tmp_path: Path) -> None:
    assert worker(tmp_path, Limits(60, patience=3)).run() == "3 trials brought no better one"
    values = [trial.value for trial in trials_in(tmp_path).counted()]
    assert max(values[:-3]) >= max(values[-3:])


def test_equal_settings_are_trained_once(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, space={"train.lr": one_of(1e-3, 2e-3, 4e-3)})
    worker(tmp_path, Limits(3), trials=trials).run()
    counted = trials.counted()
    assert sorted(trial.params["train.lr"] for trial in counted) == [1e-3, 2e-3, 4e-3]
    for trial in trials.study.trials:
        if UNCOUNTED in trial.user_attrs and trial.state is TrialState.COMPLETE:
            assert trial.value == accuracy(trial.params["train.lr"], 3)


def test_pruned_trial_is_not_a_failure(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, pruner="asha")
    worker(tmp_path, Limits(12), trials=trials).run()
    found = {trial.state for trial in trials.counted()}
    assert found == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials.counted():
        assert len(epochs_of(tmp_path, trial.number)) == len(trial.intermediate_values)
        assert (trial.state is TrialState.PRUNED) == (len(trial.intermediate_values) < 3)


@pytest.mark.parametrize("code", [78, 1, 2])
def test_failed_trial_does_not_end_the_sweep(tmp_path: Path, code: int) -> None:
    worker(tmp_path, Limits(3), fails={1: code}).run()
    assert states(tmp_path) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert trials_in(tmp_path).counted()[1].user_attrs[REASON] == f"It failed with {code}."


@pytest.mark.parametrize(
    ("fails", "why"), [(75, "It failed with 75."), (-9, "The trial's process was killed by SIGKILL.")]
)
def test_trial_is_tried_three_times(tmp_path: Path, fails: int, why: str) -> None:
    worker(tmp_path, Limits(3), fails={1: fails}).run()
    trial = trials_in(tmp_path).counted()[1]
    assert (trial.state, trial.user_attrs["failures"], trial.user_attrs[REASON]) == (TrialState.FAIL, 3, why)


@pytest.mark.parametrize("code", [65, 77])
def test_fault_of_all_trials_ends_the_sweep(tmp_path: Path, code: int) -> None:
    why = f"Trial 1 ended the sweep, and the same command continues it: It failed with {code}"
    for _ in range(4):
        with pytest.raises(EndedError, match=why) as raised:
            worker(tmp_path, Limits(9), fails={1: code}).run()
    assert raised.value.exit_code == code
    assert states(tmp_path) == [TrialState.COMPLETE, TrialState.RUNNING]
    resting = trials_in(tmp_path).counted()[1].user_attrs
    assert (resting[REASON], resting.get(FAILURES)) == (f"It failed with {code}.", None)
    worker(tmp_path, Limits(3)).run()  # once the fault is repaired
    check_every_trial(tmp_path, 3)
    assert trials_in(tmp_path).counted()[1].user_attrs[REASON].startswith("best after epoch")


def test_finished_run_that_no_worker_reported_is_complete(tmp_path: Path) -> None:
    """Its worker was frozen while it ended."""
    lost = trials_in(tmp_path).begin(1)
    assert lost
    Toy(tmp_path / "trials/0", lost.settings.train.lr).write_all()
    worker(tmp_path, Limits(2)).run()
    check_every_trial(tmp_path, 2)


def test_small_space_ends_the_sweep_once_all_of_it_is_trained(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, space={"train.lr": one_of(1e-3, 2e-3, 4e-3)})
    assert worker(tmp_path, Limits(30), slots=2, trials=trials).run() == "every point of the space is trained"
    assert sorted(trial.params["train.lr"] for trial in trials.counted()) == [1e-3, 2e-3, 4e-3]


@dataclass
class LastWords:
    """A trial's process that has something to say when its worker stops."""

    messages: list[Epochs | Ended]
    connection: Any = field(default_factory=lambda: SimpleNamespace(poll=lambda seconds: True))
    answers: list[bool] = field(default_factory=list)

    def stop(self) -> None: ...

    def receive(self) -> Epochs | Ended:
        return self.messages.pop(0)

    def answer(self, prune: bool) -> None:
        self.answers.append(prune)


@pytest.mark.parametrize(
    ("messages", "state", "why"),
    [
        (
            [Epochs([0.1], last=False), Ended(143, "Stopped.")],
            TrialState.PRUNED,
            "below the best third of the trials at epoch 1, with 0.1000",
        ),
        ([Ended(78, "Too little memory.")], TrialState.FAIL, "Too little memory."),
        ([Epochs([0.9], last=False), Ended(143, "Stopped.")], TrialState.RUNNING, "Stopped."),
        ([Ended(0, "Done.", (0.9, 0.8))], TrialState.COMPLETE, "best after epoch 1"),
    ],
)
def test_last_words_of_a_stopped_trial_count(
    tmp_path: Path, messages: list[Epochs | Ended], state: TrialState, why: str
) -> None:
    trials = trials_in(tmp_path, pruner="asha")
    for _ in range(4):
        done = trials.begin(9)
        assert done
        trials.complete(done.trial, [0.5])
    each, running, process = worker(tmp_path, Limits(9), trials=trials), trials.begin(9), LastWords(messages)
    assert running
    each._slots[0] = _Slot(running, process)  # type: ignore[arg-type]
    epochs = sum(isinstance(message, Epochs) for message in messages)
    each._stop_all()
    last = trials.counted()[-1]
    assert (last.number, last.state, last.user_attrs[REASON]) == (4, state, why)
    assert (messages, process.answers) == ([], [state is TrialState.PRUNED] * epochs)


@pytest.mark.parametrize(("stopped", "failures"), [(True, 0), (False, 1)])
def test_trial_killed_with_its_worker_is_no_failure(tmp_path: Path, stopped: bool, failures: int) -> None:
    """SIGTERM for the whole process group reaches a trial before it can handle it, and the fork server."""
    stop, trials = StopFlag(), trials_in(tmp_path)
    if stopped:
        stop.set("a test")
    each, running = worker(tmp_path, Limits(9), stop=stop, trials=trials), trials.begin(9)
    assert running
    each._slots[0] = _Slot(running, LastWords([Ended(255, "Ended with code 255.")]))  # type: ignore[arg-type]
    each._stop_all()
    assert (states(tmp_path), trials.failures(running.trial)) == ([TrialState.RUNNING], failures)


def test_failures_in_a_row_end_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match=r"The last 5 trials failed, the last one so: It failed with 78"):
        worker(tmp_path, Limits(50), fails=dict.fromkeys(range(1, 50), 78)).run()
    assert len(states(tmp_path)) == 6


def test_stopped_worker_leaves_its_trials_to_be_continued(tmp_path: Path) -> None:
    stop = StopFlag()
    stop.set("a test")
    with pytest.raises(Preempted):
        worker(tmp_path, Limits(3), stop=stop).run()
    worker(tmp_path, Limits(3)).run()
    check_every_trial(tmp_path, 3)


def points(folder: Path) -> list[dict]:
    return [trial.params for trial in trials_in(folder).counted()]


@pytest.mark.soak
@pytest.mark.parametrize("database", [False, True])
def test_trial_whose_worker_was_lost_before_it_was_drawn_is_drawn(
    tmp_path: Path, request: pytest.FixtureRequest, database: bool
) -> None:
    """With the values that its worker would have drawn: they depend on its number."""
    uri = request.getfixturevalue("postgresql").uri if database else None
    lost = trials_in(tmp_path / "a", database=uri)
    request.addfinalizer(lambda: close(lost))
    lost.study.ask()
    trials = trials_in(tmp_path / "a", database=uri)
    request.addfinalizer(lambda: close(trials))
    worker(tmp_path / "a", Limits(3), trials=trials).run()
    check_every_trial(tmp_path / "a", 3, uri)
    worker(tmp_path / "b", Limits(3)).run()
    assert [each.params for each in trials.counted()] == points(tmp_path / "b")


@pytest.mark.soak
def test_trial_beyond_the_last_whose_worker_was_lost_is_withdrawn(tmp_path: Path) -> None:
    for _ in range(4):
        trials_in(tmp_path).study.ask()
    worker(tmp_path, Limits(3)).run()
    for frozen in trials_in(tmp_path).running():
        assert trials_in(tmp_path).resume(frozen, 3) is None
    check_every_trial(tmp_path, 3)


def test_point_is_one_object_of_the_journal(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, space=PART_A)
    trials.begin(1)
    assert len(list((tmp_path / FOLDER).glob("*.json"))) == 3  # the study, the trial, its values


def test_worker_notes_progress_of_a_trial_when_it_says_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a trial that hangs is noticed."""
    monkeypatch.setattr(watchdog, "AT_MOST_EVERY_S", 0.0)
    monkeypatch.setattr(worker_module, "_POLL_S", 0.005)
    each = worker(tmp_path, Limits(3), epoch_s=0.1)
    running: list[int] = []
    watchdog.watched_by(lambda: running.append(len(each._slots)))
    try:
        each.run()
    finally:
        watchdog.watched_by(None)
    epochs = 3 * 3
    assert 0 < running.count(1) <= epochs
    assert 0 in running


def start_worker(
    folder: Path,
    trials: int,
    slots: int = 1,
    epoch_s: float = 0.1,
    database: str | None = None,
    lease_s: float = LEASE_S,
) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.search.toy_worker", str(folder)]
    words += [str(trials), str(slots), str(epoch_s), str(lease_s)] + ([database] if database else [])
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for each in started:
        each.kill()
        each.wait()
        assert each.stdout
        each.stdout.close()


@pytest.fixture
def postgresql() -> Iterator[Postgresql]:
    with postgresql_server() as server:
        yield server


def epoch_counts(folder: Path) -> list[int]:
    """The epochs that each trial has written."""
    return [path.read_text().count("\n") for path in folder.glob("trials/*/epochs.jsonl")]


def wait_for_epochs(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while sum(epoch_counts(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def disturb_four_workers(tmp_path: Path, workers: list[subprocess.Popen[str]], database: str | None = None) -> None:
    workers += [start_worker(tmp_path, 12, database=database) for _ in range(4)]
    wait_for_epochs(tmp_path, 6)
    workers[0].send_signal(signal.SIGKILL)
    workers[1].send_signal(signal.SIGTERM)
    workers[2].send_signal(signal.SIGSTOP)
    assert workers[1].wait(60) == 143
    time.sleep(1)
    workers[2].send_signal(signal.SIGCONT)
    for each in workers[2:]:
        last = each.communicate(timeout=120)[0].splitlines()[-1]
        assert (each.returncode, json.loads(last)) == (0, {"why": "all 12 trials have ended"})
    check_every_trial(tmp_path, 12, database)


@pytest.mark.soak
def test_four_workers_of_which_three_are_disturbed(tmp_path: Path, workers: list[subprocess.Popen[str]]) -> None:
    """One killed, one stopped, one frozen while the others go on: no trial is lost, and none runs twice."""
    disturb_four_workers(tmp_path, workers)


@pytest.mark.soak
def test_four_workers_on_postgresql(
    tmp_path: Path, workers: list[subprocess.Popen[str]], postgresql: Postgresql
) -> None:
    disturb_four_workers(tmp_path, workers, postgresql.uri)


def test_database_that_fails_during_a_search_is_temporary(
    tmp_path: Path, postgresql: Postgresql, request: pytest.FixtureRequest
) -> None:
    trials = trials_in(tmp_path, database=postgresql.uri)
    request.addfinalizer(lambda: close(trials))
    postgresql.stop()
    with (
        pytest.raises(TransientError, match=r"--storage is postgresql://127\.0\.0\.1:\d+/postgres, which fails"),
        database_errors(postgresql.uri),
    ):
        worker(tmp_path, Limits(2), trials=trials).run()
    with pytest.raises(TransientError, match=r"does not answer .* despite retries"):
        open_storage(None, postgresql.uri, retries=1)


def wait_until_ready(each: subprocess.Popen[str]) -> None:
    assert each.stdout
    assert each.stdout.readline().strip() == READY


def wait_for_another_epoch(folder: Path, each: subprocess.Popen[str]) -> None:
    before, deadline = sum(epoch_counts(folder)), time.monotonic() + 120
    while sum(epoch_counts(folder)) == before and each.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_locks(folder: Path) -> None:
    """Wait until no process of a trial is left: one that was killed may die after its worker."""
    deadline = time.monotonic() + 60
    while not all(is_free(lock.parent, 0.0, 0.0) for lock in folder.glob("trials/*/lock")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.soak
def test_sweep_killed_at_random_moments(tmp_path: Path, workers: list[subprocess.Popen[str]]) -> None:
    """Killed 20 times, with SIGKILL or SIGTERM: the same trials as an undisturbed sweep.

    SIGKILL kills its trial too, as when a machine is lost. No lease delays the next worker: it would draw a trial
    meanwhile, with one that has no result.
    """
    disturbed, whole, draws = tmp_path / "disturbed", tmp_path / "whole", random.Random(0)
    interrupted = 0
    for number in range(20):
        each = start_worker(disturbed, 12, epoch_s=0.2, lease_s=0.0)
        workers.append(each)
        wait_until_ready(each)
        if number % 2:
            wait_for_another_epoch(disturbed, each)
        time.sleep(draws.uniform(0.0, 0.6))
        if draws.random() < 0.5:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(each.pid, signal.SIGKILL)
        else:
            each.send_signal(signal.SIGTERM)
        each.wait(60)
        wait_for_locks(disturbed)
        interrupted += any(0 < count < 3 for count in epoch_counts(disturbed))
    assert interrupted
    last = start_worker(disturbed, 12, epoch_s=0.0, lease_s=0.0)
    workers.append(last)
    assert last.wait(120) == 0
    worker(whole, Limits(12)).run()
    check_every_trial(disturbed, 12)
    assert [trial.params for trial in trials_in(disturbed).counted()] == [
        trial.params for trial in trials_in(whole).counted()
    ]
