"""A real job that is stopped from outside: by signals to it or its group, by a Spot notice, and while it hangs."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import loopback
from tests.harness.children import Child, children, wait_for_event
from tests.harness.made_images import tree, write_zip

ROOT = Path(__file__).parent.parent
SMALL = "parta --image-size 32 --filters 4 --epochs 400 --batch-size 8 --run-id r".split()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Starts a job in a session of its own, in an empty folder."""
    archive = write_zip(tmp_path / "x.zip", tree(train=20, test=5))

    def start(*further: str, **environment: str) -> Child:
        return made.start([*SMALL, "--data", str(archive), *further], environment)

    with children(tmp_path) as made:
        yield start


def last_line(child: Child) -> str:
    return child.communicate(timeout=60)[1].splitlines()[-1]


def is_asked(server: socket.socket) -> bool:
    """Whether another connection waits."""
    return bool(select.select([server], [], [], 0)[0])


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_process_group(job: Callable[..., Child], number: signal.Signals, tmp_path: Path) -> None:
    """wandb's own process gets it too, and ends."""
    child = job("--wandb", "offline")
    wait_for_event(child, "epoch")
    os.killpg(child.pid, number)
    assert "Stopped: step" in last_line(child)
    assert child.returncode == 143
    [attempt] = (tmp_path / "runs/r/attempts").glob("*.json")
    assert json.loads(attempt.read_text())["why"] == "preempted"


class _Metadata(loopback.Handler):
    noticed = False

    def do_PUT(self) -> None:
        self.answer(200, b"token")

    def do_GET(self) -> None:
        notice = {"action": "terminate", "time": "2030-01-01T00:00:00Z"}
        self.answer(200 if self.noticed else 404, json.dumps(notice).encode())


@pytest.mark.soak
def test_spot_notice_stores_a_checkpoint(job: Callable[..., Child], monkeypatch: pytest.MonkeyPatch) -> None:
    with loopback.serve(_Metadata) as url:
        environment = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "AWS_EC2_METADATA_DISABLED": "false"}
        child = job("--wandb", "off", **environment)
        wait_for_event(child, "epoch")
        monkeypatch.setattr(_Metadata, "noticed", True)
        wait_for_event(child, "stopping")
        assert "Stopped: step" in last_line(child)
        assert child.returncode == 143


def test_stop_while_a_server_is_silent(job: Callable[..., Child]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        child = job(
            "--wandb",
            "off",
            "--output",
            "s3://bucket/runs",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.getsockname()[1]}",
            AWS_ACCESS_KEY_ID="k",
            AWS_SECRET_ACCESS_KEY="s",
        )
        link, _ = silent.accept()  # its request for the run's state
        with link:
            child.send_signal(signal.SIGTERM)
            assert "waiting for s3://bucket/runs/r" in last_line(child)
            assert child.returncode == 143
            assert not is_asked(silent), "the first request timed out"


@pytest.mark.parametrize(
    ("part", "options", "said"),
    [
        ("parta", ["--data", "s3://bucket/x.zip"], "waiting for s3://bucket"),
        ("parta", ["--data", "s3://bucket/folder"], "waiting for s3://bucket/folder"),
        ("parta", ["--data", "http://{}/x.zip"], "waiting for http://"),
        pytest.param(
            "partb",
            ["--data", "demo:", "--weights", "http://{}/w.pth"],
            "waiting for http://",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_stop_while_the_store_of_an_input_is_silent(part: str, options: list[str], said: str, tmp_path: Path) -> None:
    """The request is abandoned: neither its time-out nor the end of the grace is waited for."""
    with socket.create_server(("127.0.0.1", 0)) as silent, children(tmp_path) as made:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        flags = ["--image-size", "32", "--wandb", "off", "--grace-seconds", "60"]
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": f"http://{address}"}
        child = made.start([part, *flags, *(each.format(address) for each in options)], keys)
        silent.settimeout(120)
        link, _ = silent.accept()
        with link:
            time.sleep(1)
            child.send_signal(signal.SIGTERM)
            assert said in last_line(child)
            assert child.returncode == 143
            assert not is_asked(silent), "the first request timed out"


def test_failure_file_of_sagemaker(job: Callable[..., Child], tmp_path: Path) -> None:
    child = job("--wandb", "off", "--data", "/none.zip", SAGEMAKER_BASE_DIR=str(tmp_path / "ml"))
    (tmp_path / "ml").mkdir(exist_ok=True)
    sentence = last_line(child)
    assert child.returncode == 65
    assert sentence == "Error: " + (tmp_path / "ml/output/failure").read_text()


IN_PYTHON = "while time.monotonic() < until: pass"
IN_C = """
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
lock(mutex)
"""


@pytest.mark.parametrize("hangs", [IN_PYTHON, IN_C], ids=["Python", "C"])
def test_hanging_process_ends_within_the_grace(hangs: str) -> None:
    script = f"""
import ctypes, time
from inat_job import signals
stop = signals.StopFlag()
stop.install()
signals.end_within_grace(stop, 3.0, lambda: print(stop.why), lambda: print("last words", flush=True), 1.0)
print("up", flush=True)
until = time.monotonic() + 60
{hangs}
"""
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.5)  # until it hangs
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=30)[0] == "SIGTERM\nlast words\n"
    assert child.returncode == 143
    assert 2.0 < time.monotonic() - begun < 6.0
