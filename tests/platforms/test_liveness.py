"""The file that work touches: of a real job that trains it stays fresh, of one that hangs it grows old."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inat_job import pulse
from inat_job.platforms import liveness

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def unwatched() -> Iterator[None]:
    yield
    pulse.watched_by(None)


def test_without_the_variable_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    liveness.watch({})
    pulse.beat()
    assert not list(tmp_path.iterdir())


def test_it_is_there_at_once_and_what_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    liveness.watch({liveness.VARIABLE: str(tmp_path / "alive")})
    assert (tmp_path / "alive").exists()
    liveness.watch({liveness.VARIABLE: str(tmp_path / "no" / "alive")})
    pulse.beat()


def test_the_probe_tells_fresh_from_stale_and_missing(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    command = liveness.probe(str(alive))
    assert subprocess.run(command, capture_output=True).returncode != 0
    alive.touch()
    assert subprocess.run(command).returncode == 0
    old = time.time() - 60 * liveness.STALE_MINUTES - 60
    os.utime(alive, (old, old))
    assert subprocess.run(command).returncode != 0


def test_a_job_that_is_frozen_lets_it_grow_old(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    words = "parta --data demo: --image-size 32 --filters 4 --epochs 1000 --batch-size 8 --wandb off".split()
    child = subprocess.Popen(
        [sys.executable, ROOT / "entrypoint.py", *words],
        cwd=tmp_path,
        env=os.environ | {liveness.VARIABLE: str(alive)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout
        next(line for line in child.stdout if '"epoch"' in line)
        assert age(alive) < 3
        time.sleep(1.5)
        assert age(alive) < 3
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        seen = alive.stat().st_mtime
        time.sleep(1.5)
        assert alive.stat().st_mtime == seen
    finally:
        child.kill()
        child.communicate()


def age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
