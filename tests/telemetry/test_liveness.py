"""liveness.py: work touches the file, and a job that hangs lets it grow old."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inat_job import watchdog
from inat_job.telemetry import liveness

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def unwatched() -> Iterator[None]:
    yield
    watchdog.watched_by(None)


def test_no_file_without_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    liveness.start({})
    watchdog.beat()
    assert not list(tmp_path.iterdir())


def test_file_is_created_at_once_or_ignored(tmp_path: Path) -> None:
    liveness.start({liveness.VARIABLE: str(tmp_path / "alive")})
    assert (tmp_path / "alive").exists()
    liveness.start({liveness.VARIABLE: str(tmp_path / "no" / "alive")})
    watchdog.beat()


def test_probe_fails_for_a_stale_or_missing_file(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    command = ("sh", "-c", f"find {alive} -mmin -{liveness.STALE_MINUTES} | grep -q .")  # find alone never fails
    assert subprocess.run(command, capture_output=True).returncode != 0
    alive.touch()
    assert subprocess.run(command).returncode == 0
    old = time.time() - 60 * liveness.STALE_MINUTES - 60
    os.utime(alive, (old, old))
    assert subprocess.run(command).returncode != 0


@pytest.mark.soak
def test_hanging_step_is_not_alive_despite_running_threads(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    words = "parta --data demo: --image-size 32 --filters 4 --batch-size 8 --wandb off --lease-seconds 4 --run-id r"
    child = subprocess.Popen(
        [sys.executable, "-c", HANGS, *words.split()],
        cwd=tmp_path,
        env=os.environ | {liveness.VARIABLE: str(alive), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout
        next(line for line in child.stdout if line == "hangs\n")
        assert age(alive) < 3
        time.sleep(1.2)
        seen, lease = alive.stat().st_mtime, tmp_path / "runs/r/attempts/1.json"
        beat = lease.read_text()
        time.sleep(2.5)
        assert lease.read_text() != beat
        assert alive.stat().st_mtime == seen
    finally:
        child.kill()
        child.communicate()


HANGS = """
import time
import entrypoint
from inat_job.models.classifier import Classifier
step = Classifier.training_step
def hang(self, *batch):
    if self.trainer.global_step == 50:
        print("hangs", flush=True)
        time.sleep(60)
    return step(self, *batch)
Classifier.training_step = hang
entrypoint.main()
"""


def age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
