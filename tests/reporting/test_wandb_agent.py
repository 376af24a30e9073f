"""A search by wandb's own agent, a real process, with a server on loopback that plays its part of the search."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.wandb_stub import Recorded, wandb_server

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SWEEP, RUN = "sweep0", "abcd1234"
POINT = {"lr": 0.004, "filters": 4, "kernel-sizes": "3", "dense": 8, "no-augment": True, "no-batch-norm": False}


@pytest.fixture
def server() -> Iterator[Recorded]:
    with wandb_server() as (recorded, _):
        recorded.sweep_config = (ROOT / "docs" / "sweep.yaml").read_text()
        yield recorded


@pytest.fixture
def start_agent(server: Recorded, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts an agent at the top of the checkout, whose runs are small and in a folder of the test."""
    started: list[subprocess.Popen[str]] = []
    variables = {
        **{"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789abcdef" * 2 + "cafecafe"},
        **{"WANDB_DIR": str(tmp_path), "WANDB_ENTITY": "tester", "WANDB_PROJECT": "birds"},
        **{"INAT_DATA": "demo:", "INAT_IMAGE_SIZE": "32", "INAT_BATCH_SIZE": "32"},
        **{"INAT_OUTPUT": str(tmp_path / "runs"), "INAT_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def start() -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "wandb", "agent", "--count", "2", SWEEP],
                cwd=ROOT,
                env={**os.environ, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def told(point: dict[str, Any]) -> dict[str, Any]:
    """What the server tells an agent to run. It gives the same name again for a run that was preempted."""
    values = {name: {"value": value} for name, value in point.items()}
    return {"type": "run", "run_id": RUN, "program": "entrypoint.py", "args": values}


def child_of(agent: subprocess.Popen[str]) -> int | None:
    """The process of the agent's run, None if it has none."""
    for task in Path(f"/proc/{agent.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if "entrypoint.py" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
    return None


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_preempted_run_of_an_agent_is_resumed_under_its_own_name(
    server: Recorded, start_agent: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    point = {**POINT, "epochs": 15}  # so many that the run still trains when it is stopped
    server.commands = [told(point), told(point)]
    agent = start_agent()
    # Its own file has an epoch at once; what wandb sends of it may come seconds later, after the last.
    wait_for(lambda: any("val_accuracy" in path.read_text() for path in tmp_path.glob("runs/*/metrics.jsonl")))
    os.kill(wait_for(lambda: child_of(agent)), signal.SIGTERM)
    out, _ = agent.communicate(timeout=300)
    assert agent.returncode == 0, out
    [folder] = (tmp_path / "runs").iterdir()
    report = json.loads((folder / "report.json").read_text())
    first, second = report["history"]
    assert (first["why"], second["started_step"]) == ("preempted", first["ended_step"])
    assert second["started_step"] > 0
    assert (report["tracker"]["run_id"], report["tracker"]["mode"]) == (RUN, "online")
    assert {each["name"] for each in server.buckets} == {RUN}
    assert {each["project"] for each in server.buckets} == {"birds"}
    assert {each["sweep"] for each in server.buckets if each["sweep"]} == {SWEEP}
    assert (server.preempting, server.exit_code) == (True, 0)
    assert server.summary["val_accuracy"] > 0
    settings = report["settings"]
    assert (settings["train"]["lr"], settings["train"]["augment"], settings["model"]["dense"]) == (0.004, False, 8)
