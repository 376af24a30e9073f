"""Several ranks on one machine, as real processes: the same training, the same end, the same resume."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness.children import Child, children, ended, ranks_of, until
from tests.harness.made_images import tree, write_zip

ROOT = Path(__file__).parent.parent
STEPS = 50
RECIPE = "--image-size 32 --filters 4 --batch-size 16 --precision fp32 --no-batch-norm --dropout 0 --wandb off".split()
Start = Callable[..., Child]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts Part A on the same images, in the same folder."""
    archive = write_zip(tmp_path / "x.zip", tree(train=50, test=7))

    def go(run: str, *further: str) -> Child:
        command = ["parta", *RECIPE, "--data", str(archive), "--run-id", run, *further]
        return made.start(command, {"OMP_NUM_THREADS": "1"})

    with children(tmp_path) as made:
        yield go


def events_of(child: Child) -> list[str]:
    """What it says, in order, until it ends well."""
    said, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    return [json.loads(line)["event"] for line in said.splitlines()]


def weights(folder: Path, run: str) -> Weights:
    """Those that the run ended with, by its last checkpoint."""
    checkpoints = (folder / "runs" / run / "checkpoints").glob("*.ckpt")
    last = max(checkpoints, key=lambda path: int(path.stem))
    assert int(last.stem) >= STEPS
    state: Weights = torch.load(last, weights_only=True)["state_dict"]
    return state


def distance(one: Weights, other: Weights) -> float:
    """Of all weights together, relative."""
    apart = sum(float((one[name] - other[name]).norm() ** 2) for name in one)
    return float((apart / sum(float(each.norm() ** 2) for each in other.values())) ** 0.5)


def report(folder: Path, run: str) -> Any:
    return json.loads((folder / "runs" / run / "report.json").read_text())


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_same_batches_give_the_same_training_on_one_rank_and_on_several(
    start: Start, tmp_path: Path, ranks: int
) -> None:
    for run, devices in (("one", 1), ("several", ranks)):
        code, last = ended(start(run, "--epochs", "8", "--devices", str(devices)))
        assert code == 0, last
    apart = distance(weights(tmp_path, "several"), weights(tmp_path, "one"))
    print(f"{ranks} ranks: weights are {apart:.2%} from those of one")
    assert apart < 0.01
    child = start("several", "--epochs", "8", "--devices", str(ranks))
    assert events_of(child) == ["phase", "done"], "and a run that is finished is found so, once"
    alone, done = report(tmp_path, "one"), report(tmp_path, "several")
    assert (done["test"]["n"], done["val"]["n"]) == (21, alone["val"]["n"])
    assert done["environment"]["execution"]["ranks"] == ranks


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_a_stop_of_the_group_is_one_checkpoint_and_the_resume_is_exact(
    start: Start, tmp_path: Path, ranks: int
) -> None:
    recipe = ("--devices", str(ranks), "--epochs", "30", "--dropout", "0.3")
    assert ended(start("whole", *recipe))[0] == 0
    child = start("cut", *recipe)
    until(child, "checkpoint")
    everyone, begun = [child.pid, *ranks_of(child.pid).values()], time.monotonic()
    for pid in everyone:
        os.kill(pid, signal.SIGTERM)
    code, last = ended(child)
    took = time.monotonic() - begun
    print(f"{ranks} ranks: 143 after {took:.1f} s")
    assert (code, took < 20) == (143, True), last
    assert re.search(r"step \d+ is stored", last)
    assert ended(start("cut", *recipe))[0] == 0
    assert len(report(tmp_path, "cut")["history"]) == 2
    whole, cut = weights(tmp_path, "whole"), weights(tmp_path, "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.soak
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_ends_the_others_and_the_run_is_taken_up_again(start: Start, tmp_path: Path, lost: int) -> None:
    recipe = ("--devices", "2", "--epochs", "30", "--lease-seconds", "4")
    child = start("r", *recipe)
    until(child, "checkpoint")
    ranks = ranks_of(child.pid)
    begun = time.monotonic()
    os.kill(ranks[lost], signal.SIGKILL)
    code, last = ended(child)
    took = time.monotonic() - begun
    print(f"rank {lost} lost: 75 after {took:.1f} s")
    assert (code, took < 60) == (75, True), last
    assert f"Rank {lost} was killed by SIGKILL" in last
    assert not [pid for pid in ranks.values() if Path("/proc", str(pid)).exists()]
    assert ended(start("r", *recipe))[0] == 0
    assert report(tmp_path, "r")["history"][1]["started_step"] > 0


def test_what_one_rank_refuses_is_what_the_job_says(start: Start) -> None:
    code, last = ended(start("r", "--devices", "3"))
    assert (code, last) == (
        78,
        "Error: --batch-size is 16, for all of 3 devices in 1 slices: make it a multiple of 3, or lower --devices.",
    )
    code, last = ended(start("r", "--devices", "2", "--accelerator", "cpu", "--sync-batch-norm"))
    assert code == 78
    assert "--sync-batch-norm needs GPUs" in last
    code, last = ended(start("r", "--num-nodes", "2"))
    assert code == 78
    assert "MASTER_ADDR" in last


TAMPERED = """
import os, sys, time
sys.path.insert(0, {root!r})
import entrypoint
from inat_job import signals
from inat_job.errors import ConflictError
from inat_job.commands import train
from inat_job.run import exit

def leads(rank, settings, folder, stop, started):
    while {hangs} or not stop():
        time.sleep(0.1)
    signals.check(stop, "leading")

def follows(rank, settings, folder, stop, started):
    if {fails}:
        raise ConflictError("Rank 1 has no such thing: get one.")
    leads(rank, settings, folder, stop, started)

train._lead, train._follow = leads, follows
os.write(1, os.environ.get("RANK", "supervisor").encode() + b"\\n")  # at once: several write to one pipe
try:
    entrypoint.main()
except SystemExit as end:
    exit.exit_now(int(end.code or 0))
exit.exit_now(0)
"""
"""Two ranks that do no work, one of which may hang or fail."""


def tampered(tmp_path: Path, *further: str, hangs: bool = False, fails: bool = False) -> Child:
    script = tmp_path / "tampered.py"
    script.write_text(TAMPERED.format(root=str(ROOT), hangs=hangs, fails=fails))
    words = ["parta", "--data", "demo:", "--accelerator", "cpu", "--devices", "2", "--run-id", "r", *further]
    command = [sys.executable, str(script), *words]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def both_ranks(child: Child) -> None:
    """Wait until both have begun."""
    assert child.stdout
    waited = {"0\n", "1\n"}
    for line in child.stdout:
        waited.discard(line)
        if not waited:
            break
    assert not waited, child.communicate()
    time.sleep(1.5)


def test_a_rank_that_fails_alone_is_the_one_that_is_heard(tmp_path: Path) -> None:
    assert ended(tampered(tmp_path, fails=True), 30) == (78, "Error: Rank 1 has no such thing: get one.")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_alone_stops_the_others(tmp_path: Path, rank: int) -> None:
    child = tampered(tmp_path)
    both_ranks(child)
    os.kill(ranks_of(child.pid)[rank], signal.SIGTERM)
    assert ended(child, 20) == (
        143,
        "Error: Stopped by a signal while leading; run the same command again to continue.",
    )


def test_a_rank_that_hangs_says_where_before_the_grace_is_over(tmp_path: Path) -> None:
    child = tampered(tmp_path, "--grace-seconds", "5", hangs=True)
    both_ranks(child)
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    code, last = ended(child, 30)
    assert time.monotonic() - begun < 5
    assert (code, "the grace is over; no new step is stored" in last) == (143, True), last


def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    child = tampered(tmp_path, hangs=True)
    both_ranks(child)
    processes = ranks_of(child.pid)
    for _ in range(2):
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
    code, last = ended(child, 5)
    assert (code, "second signal" in last) == (143, True), last
    assert sorted(processes) == [0, 1]
    gone_by = time.monotonic() + 5
    while any(runs(pid) for pid in processes.values()):
        assert time.monotonic() < gone_by
        time.sleep(0.1)


def runs(pid: int) -> bool:
    """Whether the process is there, and is not one that only waits for its end to be read."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
