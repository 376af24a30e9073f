"""Runs with several ranks on one machine, as real processes: training, exit codes, stop and resume."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from inat_job.evaluation.prediction_table import PredictionTable
from tests.harness.children import Child, children, ranks_of, wait_for_end, wait_for_event
from tests.harness.made_images import tree, write_zip

ROOT = Path(__file__).parent.parent
STEPS = 50
RECIPE = "--image-size 32 --filters 4 --batch-size 16 --precision fp32 --no-batch-norm --dropout 0".split()
RECIPE += "--wandb off --no-pictures".split()
PROBED = "--backbone mobilenet_v3_small --weights none --strategy lp-ft --feature-views 1 --image-size 32".split()
PROBED += "--batch-size 16 --precision fp32 --wandb off --no-pictures".split()
MIXED = "--mixup 0.2 --cutmix 1 --erase 0.5 --trivial-augment 1 --flip alternating"
Start = Callable[..., Child]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts Part A, each time on the same images in the same folder."""
    with starter(tmp_path, "parta", RECIPE) as go:
        yield go


@pytest.fixture
def start_probed(tmp_path: Path) -> Iterator[Start]:
    """Starts Part B with lp-ft, likewise."""
    with starter(tmp_path, "partb", PROBED) as go:
        yield go


@contextmanager
def starter(folder: Path, command: str, recipe: Sequence[str]) -> Iterator[Start]:
    archive = write_zip(folder / "x.zip", tree(train=50, test=7))

    def go(run: str, *further: str) -> Child:
        words = [command, *recipe, "--data", str(archive), "--run-id", run, *further]
        return started.start(words, {"OMP_NUM_THREADS": "1"})

    with children(folder) as started:
        yield go


def events_of(child: Child) -> list[str]:
    """Its events, in order, until it ends with 0."""
    output, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    return [json.loads(line)["event"] for line in output.splitlines()]


def weights(folder: Path, run: str) -> Weights:
    """The weights of the run's last checkpoint, and their averages if it has any."""
    checkpoints = (folder / "runs" / run / "checkpoints").glob("*.ckpt")
    last = max(checkpoints, key=lambda path: int(path.stem))
    assert int(last.stem) >= STEPS
    checkpoint = torch.load(last, weights_only=True)
    raw = {f"raw {name}": each for name, each in checkpoint.get("raw_weights", {}).items()}
    return checkpoint["state_dict"] | raw


def distance(one: Weights, other: Weights) -> float:
    """The relative distance of all weights together."""
    squared = sum(float((one[name] - other[name]).norm() ** 2) for name in one)
    return float((squared / sum(float(each.norm() ** 2) for each in other.values())) ** 0.5)


def report(folder: Path, run: str) -> Any:
    return json.loads((folder / "runs" / run / "report.json").read_text())


@pytest.mark.soak
@pytest.mark.parametrize(("ranks", "further"), [(2, ""), (4, ""), (2, f"{MIXED} --ema 0.9")])
def test_several_ranks_train_like_one(start: Start, tmp_path: Path, ranks: int, further: str) -> None:
    recipe = ("--epochs", "8", *further.split())
    for run, devices in (("one", 1), ("several", ranks)):
        code, last = wait_for_end(start(run, *recipe, "--devices", str(devices)))
        assert code == 0, last
    difference = distance(weights(tmp_path, "several"), weights(tmp_path, "one"))
    print(f"{ranks} ranks: weights differ from those of one by {difference:.2%}")
    assert difference < 0.01
    child = start("several", *recipe, "--devices", str(ranks))
    assert events_of(child) == ["phase", "done"], "a finished run is found finished, and reported once"
    one, several = report(tmp_path, "one"), report(tmp_path, "several")
    assert (several["test"]["n"], several["val"]["n"]) == (21, one["val"]["n"])
    assert several["environment"]["execution"]["ranks"] == ranks


@pytest.mark.soak
@pytest.mark.parametrize(
    ("ranks", "further"),
    [
        (2, ""),
        (2, "--final --sampling balanced --max-time 1h"),
        (4, "--class-weights balanced"),
        (2, f"{MIXED} --ema 0.9 --optimiser sgd --batch-norm --image-size 64 --start-size 32 --test-size 80"),
    ],
)
def test_stop_and_exact_resume_of_several_ranks(start: Start, tmp_path: Path, ranks: int, further: str) -> None:
    check_stop_and_resume(start, tmp_path, ranks, "--epochs", "30", "--dropout", "0.3", *further.split())


@pytest.mark.soak
def test_stop_and_exact_resume_of_two_ranks_after_a_probe(start_probed: Start, tmp_path: Path) -> None:
    check_stop_and_resume(start_probed, tmp_path, 2, "--epochs", "12")


def check_stop_and_resume(start: Start, tmp_path: Path, ranks: int, *further: str) -> None:
    """A run of several ranks, stopped after its first checkpoint, resumes to the bits of an uninterrupted one."""
    recipe = ("--devices", str(ranks), *further)
    assert wait_for_end(start("uninterrupted", *recipe))[0] == 0
    child = start("resumed", *recipe)
    wait_for_event(child, "checkpoint")
    processes, begun = [child.pid, *ranks_of(child.pid).values()], time.monotonic()
    for pid in processes:
        os.kill(pid, signal.SIGTERM)
    code, last = wait_for_end(child)
    took = time.monotonic() - begun
    print(f"{ranks} ranks: 143 after {took:.1f} s")
    assert (code, took < 20) == (143, True), last
    assert re.search(r"step \d+ is stored", last)
    assert wait_for_end(start("resumed", *recipe))[0] == 0
    assert len(report(tmp_path, "resumed")["history"]) == 2
    uninterrupted, resumed = weights(tmp_path, "uninterrupted"), weights(tmp_path, "resumed")
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)
    files = [tmp_path / "runs" / run / "predictions.csv" for run in ("uninterrupted", "resumed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    table = PredictionTable.read_csv(files[0])
    splits = (len(table.split("val")), len(table.split("test")))
    assert splits == (report(tmp_path, "resumed")["data"]["n_val"], 21)
    assert len(set(table.ids)) == len(table) == sum(splits)


@pytest.mark.soak
def test_ranks_agree_on_what_max_time_leaves(start: Start, tmp_path: Path) -> None:
    code, last = wait_for_end(start("r", "--devices", "2", "--epochs", "100000", "--max-time", "6"))
    assert code == 0, last
    [attempt] = report(tmp_path, "r")["history"]
    manifest = json.loads((tmp_path / "runs" / "r" / f"checkpoints/{attempt['ended_step']}.json").read_text())
    assert (attempt["why"], manifest["cuts"][-1][1] < 100_000) == ("max-time", True)


@pytest.mark.soak
def test_probe_of_two_ranks_is_that_of_one(start_probed: Start, tmp_path: Path) -> None:
    found = []
    for ranks in ("1", "2"):
        assert wait_for_end(start_probed(ranks, "--epochs", "1", "--devices", ranks))[0] == 0
        first = tmp_path / "runs" / ranks / "checkpoints" / "0.ckpt"
        found.append((torch.load(first, weights_only=True)["state_dict"], report(tmp_path, ranks)["probe"]))
    (one, probe_of_one), (two, probe_of_two) = found
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert probe_of_two == pytest.approx(probe_of_one)


@pytest.mark.soak
@pytest.mark.parametrize("lost", [0, 1])
def test_lost_rank_ends_the_others_and_the_run_resumes(start: Start, tmp_path: Path, lost: int) -> None:
    recipe = ("--devices", "2", "--epochs", "30", "--lease-seconds", "4")
    child = start("r", *recipe)
    wait_for_event(child, "checkpoint")
    ranks = ranks_of(child.pid)
    begun = time.monotonic()
    os.kill(ranks[lost], signal.SIGKILL)
    code, last = wait_for_end(child)
    took = time.monotonic() - begun
    print(f"rank {lost} lost: 75 after {took:.1f} s")
    assert (code, took < 60) == (75, True), last
    assert f"Rank {lost} was killed by SIGKILL" in last
    assert not [pid for pid in ranks.values() if Path("/proc", str(pid)).exists()]
    assert wait_for_end(start("r", *recipe))[0] == 0
    assert report(tmp_path, "r")["history"][1]["started_step"] > 0


@pytest.mark.soak
def test_refused_settings(start: Start) -> None:
    code, last = wait_for_end(start("r", "--devices", "3"))
    assert (code, last) == (
        78,
        "Error: --batch-size is 16, which 3 devices cannot split evenly: use a multiple of 3, or lower --devices.",
    )
    code, last = wait_for_end(start("r", "--devices", "2", "--accelerator", "cpu", "--sync-batch-norm"))
    assert code == 78
    assert "--sync-batch-norm needs GPUs" in last
    code, last = wait_for_end(start("r", "--num-nodes", "2"))
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

def wait_for_the_stop_flag(job):
    os.write(1, str(job.rank.rank).encode() + b"\\n")  # one write: processes share the pipe
    if job.rank.rank and {fails}:
        raise ConflictError("Rank 1 has no such thing: get one.")
    while {hangs} or not job.stop():
        time.sleep(0.1)
    signals.check(job.stop, "waiting")

train.run_rank = wait_for_the_stop_flag
try:
    entrypoint.main()
except SystemExit as end:
    exit.exit_now(int(end.code or 0))
exit.exit_now(0)
"""
"""Two ranks that do no work; they may hang, or rank 1 may fail."""


@pytest.fixture
def tampered(tmp_path: Path) -> Iterator[Start]:
    """Starts the tampered job."""

    def go(*further: str, hangs: bool = False, fails: bool = False) -> Child:
        script = tmp_path / "tampered.py"
        script.write_text(TAMPERED.format(root=str(ROOT), hangs=hangs, fails=fails))
        words = ["parta", "--data", "demo:", "--accelerator", "cpu", "--devices", "2", "--run-id", "r", *further]
        return started.start(words, script=str(script))

    with children(tmp_path) as started:
        yield go


def both_ranks(child: Child) -> None:
    """Wait until both ranks wait for the stop flag."""
    assert child.stdout
    missing = {"0\n", "1\n"}
    for line in child.stdout:
        missing.discard(line)
        if not missing:
            break
    assert not missing, child.communicate()


def test_failing_rank_is_reported_as_the_cause(tampered: Start) -> None:
    assert wait_for_end(tampered(fails=True), 30) == (78, "Error: Rank 1 has no such thing: get one.")


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_stop_of_one_rank_stops_the_others(tampered: Start, rank: int) -> None:
    child = tampered()
    both_ranks(child)
    os.kill(ranks_of(child.pid)[rank], signal.SIGTERM)
    assert wait_for_end(child, 20) == (
        143,
        "Error: Stopped while waiting; run the same command again to continue.",
    )


@pytest.mark.soak
def test_hanging_rank_is_reported_within_the_grace_period(tampered: Start) -> None:
    child = tampered("--grace-seconds", "5", hangs=True)
    both_ranks(child)
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    code, last = wait_for_end(child, 30)
    assert time.monotonic() - begun < 5
    assert (code, "the grace is over; no new step is stored" in last) == (143, True), last


@pytest.mark.soak
def test_second_signal_ends_all_ranks_at_once(tampered: Start) -> None:
    child = tampered(hangs=True)
    both_ranks(child)
    processes = ranks_of(child.pid)
    for _ in range(2):
        child.send_signal(signal.SIGINT)
        time.sleep(0.3)
    code, last = wait_for_end(child, 30)
    assert (code, "second signal" in last) == (143, True), last
    assert sorted(processes) == [0, 1]
    deadline = time.monotonic() + 5
    while any(runs(pid) for pid in processes.values()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
