"""`sweep` with real trials, disturbed: killed at random moments, and four workers of which three are disturbed."""

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inat_job.storage import open_store
from inat_job.storage.attempts import RUNNING, Attempt, latest_attempt
from tests.commands.test_sweep import Place, events_of, local, workers
from tests.search.postgresql import postgresql_server

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

__all__ = ["workers"]
TRIALS, KILLS = 6, 20
SWEEP = ("--trials", str(TRIALS), "--epochs", "8", "--retrain", "0", "--lease-seconds", "6")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A sweep that nothing disturbed."""
    place = local(tmp_path_factory.mktemp("whole"))
    ended = place.run(*SWEEP)
    assert ended.code == 0, ended
    return place


def results(place: Place) -> dict[int, tuple[Any, ...]]:
    """By number: values, accuracies, the rows of all logged steps as text, the validation, the tested step."""
    store, found = open_store(f"{place.output}/s"), {}
    for each in place.read("report.json")["trials"]:
        own = place.read(f"{each['run']}/report.json")
        rows = store.read(f"{each['run']}/metrics.jsonl").decode()
        found[each["number"]] = (each["values"], each["epochs"], rows, own["val"], own["checkpoint"]["step"])
    return found


def check_same(place: Place, whole: Place) -> None:
    """The same trials with bit-equal results and the same best; none lost, and none that had finished begun again."""
    report, expected = place.read("report.json"), whole.read("report.json")
    assert report["counts"] == {"done": TRIALS, "pruned": 0, "failed": 0, "unfinished": 0}
    assert results(place) == results(whole)
    assert report["best"]["trial"] == expected["best"]["trial"]
    assert report["best"]["val_accuracy"] == expected["best"]["val_accuracy"]
    for number in range(TRIALS):
        history = place.read(f"trials/{number}/report.json")["history"]
        assert [each["why"] == "finished" for each in history] == [False] * (len(history) - 1) + [True]
        for one, other in itertools.pairwise(history):
            assert other["started_step"] >= one["ended_step"], "what is known to be stored is not trained again"


def attempts(place: Place) -> dict[str, Attempt]:
    """The newest attempt at each trial that has one, by its folder."""
    folders = {each.key.partition("/attempts/")[0] for each in open_store(f"{place.output}/s").list("trials/")}
    found = {each: latest_attempt(open_store(f"{place.output}/s/{each}"), 6.0)[0] for each in folders}
    return {folder: attempt for folder, attempt in found.items() if attempt}


def held_by(place: Place, worker: subprocess.Popen[str]) -> list[str]:
    """The folders of the trials that a worker's machine works on."""
    return [each for each, attempt in attempts(place).items() if attempt.why == RUNNING and is_of(attempt, worker)]


def is_of(attempt: Attempt, worker: subprocess.Popen[str]) -> bool:
    try:
        return os.getpgid(int(attempt.holder["pid"])) == worker.pid
    except (ProcessLookupError, LookupError):  # it has ended, or is just being written
        return False


def _has_gone_on(attempt: Attempt) -> bool:
    """Whether a disturbed trial was taken over, or had been just about to finish."""
    return attempt.number > 1 or attempt.why == "finished"


def freeze_at_work(place: Place, worker: subprocess.Popen[str]) -> list[str]:
    """Freeze a worker's machine while it works on a trial, and return that trial's folder."""
    while True:
        wait_until(lambda: held_by(place, worker))
        os.killpg(worker.pid, signal.SIGSTOP)
        if held := held_by(place, worker):
            return held
        os.killpg(worker.pid, signal.SIGCONT)  # the trial has ended just before


def wait_until(condition: Any, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill_at_random(worker: subprocess.Popen[str], draws: random.Random, window_s: float) -> None:
    """Kill a worker, or its machine: once in four at any moment of its start, else while its first trial trains."""
    if draws.random() < 0.25:
        time.sleep(draws.uniform(0.0, 8.0))
    else:
        for event in events_of(worker):
            if event["event"] == "trial":
                break
        time.sleep(draws.uniform(0.0, window_s))
    number = draws.choice([signal.SIGKILL, signal.SIGTERM])
    if number is signal.SIGKILL and draws.random() < 0.5:
        os.killpg(worker.pid, number)
    else:
        worker.send_signal(number)
    worker.wait(60)  # its trial, which may only see now that it is gone, still has its pipes


def test_sweep_killed_at_random_moments(
    whole: Place, tmp_path: Path, workers: list[subprocess.Popen[str]], record_property: Any
) -> None:
    place, draws = local(tmp_path), random.Random(0)
    trained_s = sum(each["seconds"] for each in whole.read("report.json")["trials"])
    codes = []
    for _ in range(KILLS):
        workers.append(place.start(*SWEEP))
        kill_at_random(workers[-1], draws, 1.0 + 1.5 * trained_s / KILLS)
        codes.append(workers[-1].returncode)
    assert set(codes) <= {143, -signal.SIGKILL, -signal.SIGTERM}, "each was killed before the sweep was over"
    ended = place.run(*SWEEP)
    assert ended.code == 0, ended.last
    check_same(place, whole)
    record_property("attempts", [each.number for each in attempts(place).values()])


@pytest.fixture(params=["bucket", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Place, tuple[str, ...]]]:
    """A place for several workers and their options: all in a bucket, or the study in a database."""
    if request.param == "bucket":
        yield Place(f"s3://{request.getfixturevalue('s3_bucket')}/runs", tmp_path), SWEEP
        return
    with postgresql_server() as server:
        yield local(tmp_path / "sweep"), (*SWEEP, "--storage", server.uri)


def test_four_workers_of_which_three_are_disturbed(
    whole: Place, shared: tuple[Place, tuple[str, ...]], workers: list[subprocess.Popen[str]], record_property: Any
) -> None:
    """One machine is killed, one worker stopped, and one machine frozen until another has taken over its trial."""
    place, words = shared
    workers += [place.start(*words) for _ in range(4)]
    disturbed = freeze_at_work(place, workers[0])
    os.killpg(workers[0].pid, signal.SIGKILL)
    disturbed += freeze_at_work(place, workers[1])
    workers[1].send_signal(signal.SIGTERM)
    os.killpg(workers[1].pid, signal.SIGCONT)
    disturbed += freeze_at_work(place, workers[2])
    assert workers[1].wait(60) == 143
    wait_until(lambda: all(_has_gone_on(attempts(place)[each]) for each in disturbed))
    os.killpg(workers[2].pid, signal.SIGCONT)
    for each in workers[2:]:
        _, err = each.communicate(timeout=300)
        assert each.returncode == 0, err
    check_same(place, whole)
    record_property("attempts", [each.number for each in attempts(place).values()])
