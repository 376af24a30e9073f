"""Several ranks: what NCCL does in a group of one, two ranks on one card, and two ranks on two cards."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.gpu.figures import Figures
from tests.gpu.watched_runs import differing, on_both, tensors_of, weight_distance
from tests.harness.children import Child, Children, children, ranks_of, wait_for_end, wait_for_event

two_cards = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has fewer than two CUDA devices")
RECIPE = "parta --data demo: --image-size 64 --batch-size 32 --dropout 0 --no-batch-norm --precision fp32 --wandb off"
LOST_S = 200.0


@on_both
def test_group_of_one_rank_has_the_collectives_of_the_job(device: str) -> None:
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    try:
        values = torch.ones(3, device=device)
        dist.all_reduce(values)
        dist.broadcast(values, 0)
        votes = dist.new_group(backend="gloo")
        dist.barrier(votes)
        vote = torch.tensor([0, 1, 0])
        dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=votes, async_op=True).wait()
        assert values.tolist() == [1, 1, 1]
        assert vote.tolist() == [0, 1, 0]
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_two_ranks_on_one_card_are_a_conflict(tmp_path: Path, figures: Figures) -> None:
    """As where a launcher gives all ranks the same card: NCCL refuses, and another attempt would change nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": "0"}
    with children(tmp_path) as started:
        words = [*RECIPE.split(), "--epochs", "1", "--run-id", "r", "--accelerator", "cuda"]
        ranks = [started.start(words, {**common, "RANK": str(rank)}) for rank in range(2)]
        ended = [wait_for_end(child) for child in ranks]
    figures.record("two ranks on one card", ended=ended)
    assert {code for code, _ in ended} == {78}, ended


def start(started: Children, run: str, devices: int, epochs: int = 10) -> Child:
    words = [*RECIPE.split(), "--epochs", str(epochs), "--run-id", run, "--devices", str(devices)]
    return started.start([*words, "--accelerator", "cuda", "--deterministic"])


@pytest.mark.gpu
@two_cards
def test_two_cards_train_like_one(tmp_path: Path, figures: Figures) -> None:
    with children(tmp_path) as started:
        for run, devices in (("one", 1), ("two", 2)):
            code, last = wait_for_end(start(started, run, devices))
            assert code == 0, last
    one, two = (final_weights(tmp_path, run) for run in ("one", "two"))
    distance = weight_distance(two, one)
    figures.record("two cards", relative_distance=distance)
    assert distance < 5e-5


@pytest.mark.gpu
@two_cards
@pytest.mark.parametrize(
    ("number", "to_all", "expected", "limit_s"),
    [
        (signal.SIGKILL, False, 75, 5.0),
        (signal.SIGTERM, True, 143, 20.0),
        pytest.param(signal.SIGSTOP, False, 75, LOST_S, marks=pytest.mark.soak),  # 180 s: not within eight minutes
    ],
)
def test_signal_to_a_rank_of_two_cards(
    number: signal.Signals, to_all: bool, expected: int, limit_s: float, tmp_path: Path, figures: Figures
) -> None:
    with children(tmp_path) as started:
        child = start(started, "r", 2, epochs=1000)
        wait_for_event(child, "checkpoint")
        ranks = ranks_of(child.pid)
        began = time.monotonic()
        for pid in [child.pid, *ranks.values()] if to_all else [ranks[1]]:
            os.kill(pid, number)
        code, last = wait_for_end(child)
        took = time.monotonic() - began
        with contextlib.suppress(ProcessLookupError):
            os.kill(ranks[1], signal.SIGKILL)
    figures.record("two cards", **{number.name: [code, last, took]})
    assert (code, took < limit_s) == (expected, True), last


@pytest.mark.gpu
@two_cards
def test_stopped_run_of_two_cards_resumes_bit_exactly(tmp_path: Path) -> None:
    with children(tmp_path) as started:
        whole = start(started, "whole", 2)
        assert wait_for_end(whole)[0] == 0
        stopped = start(started, "stopped", 2)
        wait_for_event(stopped, "checkpoint")
        stopped.send_signal(signal.SIGTERM)
        assert wait_for_end(stopped)[0] == 143
        assert wait_for_end(start(started, "stopped", 2))[0] == 0
    assert differing(final_weights(tmp_path, "stopped"), final_weights(tmp_path, "whole")) == []


def final_weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    checkpoints = (folder / "runs" / run / "checkpoints").glob("*.ckpt")
    last = max(checkpoints, key=lambda path: int(path.stem))
    return tensors_of(torch.load(last, weights_only=True)["state_dict"])
