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


def attempts(place: Place) -> list[int]:
    """How many attempts each trial has had, by its newest one."""
    numbers: dict[str, int] = {}
    for each in open_store(f"{place.output}/s").list("trials/"):
        folder, is_attempt, name = each.key.partition("/attempts/")
        if is_attempt:
            numbers[folder] = max(numbers.get(folder, 0), int(name.partition(".")[0]))
    return list(numbers.values())


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
    record_property("attempts", attempts(place))


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
    wait_until(lambda: len(attempts(place)) == 4)
    os.killpg(workers[0].pid, signal.SIGKILL)
    workers[1].send_signal(signal.SIGTERM)
    os.killpg(workers[2].pid, signal.SIGSTOP)
    assert workers[1].wait(60) == 143
    wait_until(lambda: sum(each > 1 for each in attempts(place)) == 3)
    os.killpg(workers[2].pid, signal.SIGCONT)
    for each in workers[2:]:
        _, err = each.communicate(timeout=300)
        assert each.returncode == 0, err
    check_same(place, whole)
    record_property("attempts", attempts(place))
