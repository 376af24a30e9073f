"""`status` of real runs: new, running, preempted, killed, finished, local and on S3."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inat_job import events
from inat_job.command_options import StatusOptions
from inat_job.commands import status
from inat_job.errors import BadDataError, Preempted
from inat_job.signals import StopFlag, never
from inat_job.storage import attempts, open_store
from tests.harness.job_runs import Make, run
from tests.harness.runner import Job
from tests.harness.terminal import Terminal

ROOT = Path(__file__).parents[2]
STATUS = [sys.executable, str(ROOT / "entrypoint.py"), "status"]
TRAIN = (
    "parta --data demo: --image-size 32 --filters 4 --batch-size 8 --wandb off --lease-seconds 4 --epochs 3000 "
    "--run-id r".split()
)

pytestmark = pytest.mark.filterwarnings("ignore")

Look = Callable[..., dict[str, Any]]


@pytest.fixture
def look(settings: Make, capsys: pytest.CaptureFixture[str]) -> Look:
    """The JSON of one look at the run `r`, or another."""

    def one(name: str = "r", **changes: Any) -> dict[str, Any]:
        capsys.readouterr()
        status.run(settings(**changes), name, StatusOptions(), never)
        (line,) = capsys.readouterr().out.splitlines()
        return dict(json.loads(line))

    return one


@contextmanager
def job_until(event: str, tmp_path: Path) -> Iterator[Job]:
    """A job in a process of its own, which has logged an event."""
    with Job(TRAIN, dict(os.environ), tmp_path) as job:
        assert job.wait_for(lambda each: each.name == event)
        yield job


def test_status_of_a_missing_run(look: Look, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="holds no run: check its name and --output"):
        look("nobody")
    assert not (tmp_path / "runs").exists(), "it only reads"


@pytest.mark.soak
@pytest.mark.parametrize("where", ["local", "s3"])
def test_status_of_a_preempted_and_a_finished_run(
    look: Look, settings: Make, where: str, request: pytest.FixtureRequest
) -> None:
    changes = {"run__output": f"s3://{request.getfixturevalue('s3_bucket')}/runs"} if where == "s3" else {}
    with pytest.raises(Preempted):
        run(settings(**changes), stop_after=60)
    seen = look(**changes)
    assert (seen["state"], seen["test_accuracy"]) == ("preempted", None)
    run(settings(**changes))
    seen = look(**changes)
    assert (seen["state"], seen["part"], seen["epoch"], seen["epochs"]) == ("finished", "a", 2, 2)
    assert (seen["left_s"], seen["checkpoint"]["step"], seen["phase"]) == (0.0, seen["step"], "finished")
    assert 0 <= seen["best"]["val_accuracy"] <= 1
    assert [each["why"] for each in seen["attempts"]] == ["preempted", "finished"]
    assert look(seen["run"])["run_id"] == "r", "a URI works too"


@pytest.mark.soak
def test_status_of_a_running_job_and_watch(tmp_path: Path) -> None:
    with job_until("epoch", tmp_path) as job:
        check_running_and_watch(job, tmp_path)


def check_running_and_watch(job: Job, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}
    until = time.monotonic() + 60
    while not seen.get("step") or seen["phase"] not in ("train", "validate") or not seen["images_per_s"]:
        assert time.monotonic() < until
        seen = json.loads(subprocess.run([*STATUS, "r"], cwd=tmp_path, capture_output=True, text=True).stdout)
    assert seen["state"] == "running"
    assert seen["heard_s"] < 4
    assert (seen["epochs"], seen["epoch"] >= 1, seen["left_s"] > 10) == (3000, True, True)
    watching = subprocess.Popen(
        [*STATUS, "r", "--watch"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout
    assert json.loads(watching.stdout.readline())["state"] == "running"
    job.kill(signal.SIGTERM)
    out, err = watching.communicate(timeout=30)
    assert json.loads(out.splitlines()[-1])["state"] == "preempted"
    assert watching.returncode == 143
    assert err.startswith("Error: ")
    assert "is not finished, and its last attempt has ended (preempted)" in err


def test_status_of_a_killed_job(tmp_path: Path) -> None:
    with job_until("run", tmp_path) as job:
        job.kill(signal.SIGKILL)
        assert job.end().code == -signal.SIGKILL
    ended = subprocess.run([*STATUS, "r", "--watch"], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    seen = json.loads(ended.stdout.splitlines()[-1])
    assert (ended.returncode, seen["state"], seen["attempts"][-1]["why"]) == (75, "silent", "silent")


def test_seen_heartbeat_overrides_the_holders_clock(tmp_path: Path, settings: Make) -> None:
    """On a machine whose clock is wrong by an hour, and which writes between two looks."""
    store = open_store(str(tmp_path / "runs" / "r"))
    wrong = attempts.Attempt(1, 60.0, {"host": "elsewhere"}, at=time.time() - 3600)
    store.put(wrong.key, wrong.to_json())
    looks = status._looks(status.open_run(settings(), "r"), never)
    assert next(looks)["state"] == "silent"
    store.put(wrong.key, replace(wrong, beat=1).to_json())
    assert next(looks)["state"] == "running"


def test_watch_is_stopped_by_a_signal(tmp_path: Path, settings: Make) -> None:
    store = open_store(str(tmp_path / "runs" / "r"))
    living = attempts.Attempt(1, 60.0, {"host": "elsewhere"}, at=time.time())
    store.put(living.key, living.to_json())
    stop = StopFlag()
    stop.set("SIGINT")
    with pytest.raises(Preempted, match="while watching a run"):
        status.run(settings(), "r", StatusOptions(watch=True), stop)


def test_a_person_gets_lines(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings())
    capsys.readouterr()
    events.configure(text=True)
    status.run(settings(), "r", StatusOptions(watch=True), never)
    out = capsys.readouterr().out
    assert "finished, test accuracy 0." in out
    assert "  work        epoch 2 of 2 done, step 12\n" in out
    assert "1: step 0 to " in out


def test_each_look_replaces_the_one_before_on_a_terminal(settings: Make, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "runs" / "r"))
    attempt = attempts.Attempt(1, 60.0, {"host": "elsewhere"}, at=time.time())
    store.put(attempt.key, attempt.to_json())
    with Terminal(["status", "r", "--watch"], tmp_path) as terminal:
        terminal.until("last heartbeat")
        store.put(attempt.key, replace(attempt, beat=1, why="preempted").to_json())
        assert terminal.end() == 143
    before, *_, rows, after = re.split(r"\x1b\[(\d+)F\x1b\[J", terminal.raw)
    assert sum(len(line) // 80 + 1 for line in before.replace("\r", "").splitlines()) == int(rows)
    assert "preempted" in after


def test_status_imports_no_torch(settings: Make, tmp_path: Path) -> None:
    run(settings())
    script = (
        "import sys; sys.argv = ['entrypoint.py', 'status', 'r']\n"
        "import entrypoint; entrypoint.main()\n"
        "print(sorted({'torch', 'torchvision', 'lightning', 'wandb', 'boto3', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
