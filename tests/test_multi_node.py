"""Runs on two machines: two network namespaces with a cable between them (needs iproute2 and root)."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.children import Child, children, ranks_of, wait_for_end, wait_for_event
from tests.harness.made_images import tree, write_zip
from tests.harness.netns import Cable, connected_namespaces

ROOT = Path(__file__).parent.parent
RECIPE = "--image-size 32 --filters 4 --batch-size 16 --precision fp32 --run-id r --lease-seconds 4".split()
RECIPE += "--wandb off --no-pictures".split()
Start = Callable[..., Child]

pytestmark = pytest.mark.soak


@pytest.fixture
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2, and root")
    with connected_namespaces() as cable:
        yield cable


@pytest.fixture
def start(tmp_path: Path, cable: Cable) -> Iterator[Start]:
    """Starts Part A on one of the machines, which share only the output."""
    archive = write_zip(tmp_path / "x.zip", tree(train=50, test=7))

    def go(node: int, *further: str) -> Child:
        variables = {
            "INAT_NUM_NODES": "2",
            "NODE_RANK": str(node),
            "MASTER_ADDR": cable.addresses[0],
            "OMP_NUM_THREADS": "1",
        }
        options = ("--data", str(archive), "--cache-dir", str(tmp_path / f"cache{node}"))
        return started.start(["parta", *RECIPE, *options, *further], variables, prefix=cable.command_prefix(node))

    with children(tmp_path) as started:
        yield go


def exits(processes: list[Child]) -> list[tuple[int, str]]:
    """The exit code and last line on stderr of each process."""
    return [wait_for_end(child) for child in processes]


def test_training_survives_a_network_cut_of_30_s(start: Start, cable: Cable, tmp_path: Path) -> None:
    recipe = ("--epochs", "40")
    children = [start(node, *recipe) for node in (1, 0)]
    wait_for_event(children[1], "checkpoint")
    cable.cut()
    time.sleep(30)
    cable.reconnect()
    assert [code for code, _ in exits(children)] == [0, 0]
    assert (tmp_path / "runs" / "r" / "report.json").exists()
    again = [start(node, *recipe) for node in (0, 1)]
    assert [code for code, _ in exits(again)] == [0, 0], "both find the run finished"


def test_killed_rank_ends_the_other_machine(start: Start) -> None:
    children = [start(node, "--epochs", "200") for node in (0, 1)]
    wait_for_event(children[0], "build")
    begun = time.monotonic()
    for pid in ranks_of(children[1].pid).values():
        os.kill(pid, signal.SIGKILL)
    for code, last in exits(children):
        assert code == 75, last
        assert "Rank 1 was killed by SIGKILL" in last or "lost" in last
    assert time.monotonic() - begun < 60


def test_permanent_cut_is_a_lost_rank_and_the_run_resumes(start: Start, cable: Cable) -> None:
    recipe = ("--epochs", "200")
    children = [start(node, *recipe) for node in (0, 1)]
    wait_for_event(children[0], "checkpoint")
    cable.cut()
    begun = time.monotonic()
    for code, last in exits(children):
        assert (code, "lost" in last) == (75, True), last
    print(f"75 on both after {time.monotonic() - begun:.0f} s")
    cable.reconnect()
    recipe = ("--epochs", "200", "--resume", "must")
    children = [start(node, *recipe) for node in (0, 1)]
    wait_for_event(children[0], "checkpoint")
    for child in children:
        child.terminate()
    stopped = exits(children)
    assert [code for code, _ in stopped] == [143, 143], stopped
