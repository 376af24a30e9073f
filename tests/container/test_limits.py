"""A container with little memory or shared memory, and Kubernetes' termination log."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import DEMO, HARDENED_OFFLINE, Job, engine, report, run

pytestmark = pytest.mark.container

SHORT = (*DEMO, "--epochs", "1")
LOG = "/dev/termination-log"


@pytest.fixture
def termination_log(tmp_path: Path) -> Path:
    """A file as the kubelet creates it: empty, and writable for everyone."""
    path = tmp_path / "termination-log"
    path.touch()
    path.chmod(0o666)
    return path


def _message(path: Path) -> dict[str, Any]:
    [line] = path.read_text().splitlines()
    return json.loads(line)  # type: ignore[no-any-return]


@pytest.mark.parametrize("limit", [("--shm-size", "64k"), ("--memory", "1500m")], ids=" ".join)
def test_run_within_a_limit(image: str, output: Path, limit: tuple[str, ...]) -> None:
    done = run(image, *limit, "-v", f"{output}:/output", command=SHORT)
    assert done.returncode == 0, done.stderr
    assert report(output)["status"] == "done"


def test_far_too_little_memory(image: str, output: Path) -> None:
    done = run(image, "--memory", "300m", "-v", f"{output}:/output", command=SHORT)
    assert done.returncode in (137, 78), done.stderr
    if done.returncode == 78:
        assert "emory" in done.stderr.splitlines()[-1]


def test_termination_message_of_a_failure(image: str, termination_log: Path) -> None:
    done = run(image, "-v", f"{termination_log}:{LOG}", command=("parta", "--data", "/nowhere.zip"))
    assert done.returncode == 65
    message = _message(termination_log)
    assert (message["code"], message["step"], message["checkpoint"]) == (65, None, None)
    assert done.stderr.splitlines()[-1] == f"Error: {message['reason']}"


def test_termination_message_of_a_usage_error(image: str, termination_log: Path) -> None:
    done = run(image, "-v", f"{termination_log}:{LOG}", command=("parta", "--epochs", "none"))
    assert done.returncode == 2
    assert _message(termination_log)["code"] == 2
    assert "--epochs" in _message(termination_log)["reason"]


def test_termination_message_of_a_stopped_job(image: str, output: Path, name: str, termination_log: Path) -> None:
    mounts = ("-v", f"{termination_log}:{LOG}", "-v", f"{output}:/output")
    job = Job(image, name, (*HARDENED_OFFLINE, *mounts), (*DEMO, "--epochs", "100"))
    job.until(lambda: any(each["event"] == "epoch" for each in job.events))
    engine("kill", "-s", "TERM", name)
    assert job.wait() == 143
    message = _message(termination_log)
    assert message["code"] == 143
    assert message["step"] > 0
    stored = output / str(message["checkpoint"]).removeprefix("/output/")
    assert stored.exists(), message
    assert job.errors[-1] == f"Error: {message['reason']}\n"


def test_termination_message_of_a_success(image: str, output: Path, termination_log: Path) -> None:
    mounts = ("-v", f"{termination_log}:{LOG}", "-v", f"{output}:/output")
    assert run(image, *mounts, command=SHORT).returncode == 0
    assert _message(termination_log)["code"] == 0
    again = run(image, *mounts, command=SHORT)  # the run is already finished
    assert again.returncode == 0
    assert _message(termination_log)["code"] == 0


@pytest.mark.parametrize("mode", ["", "ro"])
def test_unwritable_termination_log_is_ignored(image: str, termination_log: Path, mode: str) -> None:
    termination_log.chmod(0o400)
    mount = f"{termination_log}:{LOG}" + (f":{mode}" if mode else "")
    done = run(image, "-v", mount, command=("parta", "--data", "/nowhere.zip"))
    assert done.returncode == 65
    assert "Traceback" not in done.stderr
    assert termination_log.read_bytes() == b""
