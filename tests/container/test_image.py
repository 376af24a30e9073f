"""The image, run as a hardened cluster does: read-only root, no capabilities, an unnamed user, no network."""

import time
from pathlib import Path

import pytest

from .conftest import DEMO, HARDENED_OFFLINE, engine, report, run

pytestmark = pytest.mark.container


def test_help(image: str) -> None:
    done = run(image, command=("--help",))
    assert done.returncode == 0, done.stderr
    assert "parta" in done.stdout


def test_user_is_not_root(image: str) -> None:
    code = "import getpass, os, tempfile; print(os.getuid(), getpass.getuser(), tempfile.gettempdir())"
    done = run(image, "--entrypoint", "/opt/venv/bin/python", command=("-c", code))
    assert done.stdout.split() == ["10001", "inat-job", "/scratch"], done.stderr


@pytest.mark.parametrize("user", ["10001", "54321:54321"])
def test_run_with_scratch_and_output_only(image: str, output: Path, user: str) -> None:
    done = run(image, "--user", user, "-v", f"{output}:/output", command=(*DEMO, "--epochs", "1"))
    assert done.returncode == 0, done.stderr
    assert report(output)["status"] == "done"
    assert list(output.glob("*/wandb/offline-run-*/*.wandb"))


def test_stop_stores_a_checkpoint_and_the_run_resumes(image: str, output: Path, name: str) -> None:
    command = (*DEMO, "--epochs", "30")
    started = engine("run", "-d", "--name", name, *HARDENED_OFFLINE, "-v", f"{output}:/output", image, *command)
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 120
    while '"epoch"' not in engine("logs", name).stdout:
        assert time.monotonic() < deadline, engine("logs", name).stderr
        time.sleep(0.5)
    engine("stop", "-t", "60", name)
    assert engine("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "143"
    done = run(image, "-v", f"{output}:/output", command=command)
    assert done.returncode == 0, done.stderr
    assert '"state": "resume"' in done.stdout
    assert len(report(output)["history"]) == 2
