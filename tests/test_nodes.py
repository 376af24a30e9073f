"""Two machines, as two network namespaces with their own addresses and a cable between them (iproute2, root)."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.children import Child, children, ranks_of, wait_for_end, wait_for_event
from tests.harness.made_images import tree, write_zip
from tests.harness.netns import Cable, laid

ROOT = Path(__file__).parent.parent
RECIPE = "--image-size 32 --filters 4 --batch-size 16 --precision fp32 --wandb off --run-id r --lease-seconds 4".split()
Start = Callable[..., Child]

pytestmark = pytest.mark.soak


@pytest.fixture
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2, and root")
    with laid() as made:
        yield made


@pytest.fixture
def start(tmp_path: Path, cable: Cable) -> Iterator[Start]:
    """Starts Part A on one of the machines, which share no more than the output."""
    archive = write_zip(tmp_path / "x.zip", tree(train=50, test=7))

    def go(node: int, *further: str) -> Child:
        told = {
            "INAT_NUM_NODES": "2",
            "NODE_RANK": str(node),
            "MASTER_ADDR": cable.addresses[0],
            "OMP_NUM_THREADS": "1",
        }
        own = ("--data", str(archive), "--cache-dir", str(tmp_path / f"cache{node}"))
        return made.start(["parta", *RECIPE, *own, *further], told, prefix=cable.within(node))

    with children(tmp_path) as made:
        yield go


def ends(every: list[Child]) -> list[tuple[int, str]]:
    """Exit code and last line on stderr of each."""
    return [wait_for_end(child) for child in every]


def test_two_machines_train_and_a_cut_of_30_s_is_nothing(start: Start, cable: Cable, tmp_path: Path) -> None:
    recipe = ("--epochs", "40")
    children = [start(node, *recipe) for node in (1, 0)]
    wait_for_event(children[1], "checkpoint")
    cable.cut()
    time.sleep(30)
    cable.mend()
    assert [code for code, _ in ends(children)] == [0, 0]
    assert (tmp_path / "runs" / "r" / "report.json").exists()
    again = [start(node, *recipe) for node in (0, 1)]
    assert [code for code, _ in ends(again)] == [0, 0], "the run is finished, and found so by both"


def test_a_rank_that_is_killed_while_it_is_waited_for_ends_the_other_machine(start: Start) -> None:
    children = [start(node, "--epochs", "200") for node in (0, 1)]
    wait_for_event(children[0], "build")
    begun = time.monotonic()
    for pid in ranks_of(children[1].pid).values():
        os.kill(pid, signal.SIGKILL)
    for code, last in ends(children):
        assert code == 75, last
        assert "Rank 1 was killed by SIGKILL" in last or "lost" in last
    assert time.monotonic() - begun < 60


def test_a_cut_for_good_is_a_lost_rank_and_the_run_is_taken_up_again(start: Start, cable: Cable) -> None:
    recipe = ("--epochs", "200")
    children = [start(node, *recipe) for node in (0, 1)]
    wait_for_event(children[0], "checkpoint")
    cable.cut()
    begun = time.monotonic()
    for code, last in ends(children):
        assert (code, "lost" in last) == (75, True), last
    print(f"75 on both after {time.monotonic() - begun:.0f} s")
    cable.mend()
    recipe = ("--epochs", "200", "--resume", "must")
    children = [start(node, *recipe) for node in (0, 1)]
    wait_for_event(children[0], "checkpoint")
    for child in children:
        child.terminate()
    ended = ends(children)
    assert [code for code, _ in ended] == [143, 143], ended
