"""The barrier and the failure cause, which go through the store and need no collectives."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import HashStore

from inat_job.distributed.process_group import ProcessGroup
from inat_job.distributed.ranks import Rank
from inat_job.errors import ConflictError, JobError, Preempted, TransientError
from inat_job.signals import StopFlag


def test_barrier_waits_for_all_ranks_each_time() -> None:
    store = HashStore()
    slow, quick = (ProcessGroup(Rank(rank, 2, rank, 2), store) for rank in range(2))
    for _ in range(2):
        waiting = threading.Thread(target=quick.barrier)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        slow.barrier()
        waiting.join(5)
        assert not waiting.is_alive()


def test_barrier_ends_on_the_stop_flag() -> None:
    stop = StopFlag()
    stop.set("SIGTERM")
    with pytest.raises(Preempted, match="waiting for the other ranks"):
        ProcessGroup(Rank(0, 2, 0, 2), HashStore(), stop).barrier()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Preempted("Stopped while fetching."), 143, "Stopped while waiting"),
        (ConflictError("Out of memory at these settings."), 78, "Out of memory at these settings."),
        (TransientError("The disk failed."), 75, "The disk failed."),
    ],
    ids=["stopped", "failed", "transient"],
)
def test_waiting_rank_raises_the_failure_of_another_rank(error: JobError, code: int, words: str) -> None:
    store = HashStore()
    ended, waiting = (ProcessGroup(Rank(rank, 2, 0, 1), store) for rank in range(2))
    with pytest.raises(type(error)), ended:
        raise error
    with pytest.raises(JobError, match=words) as raised:
        waiting.barrier()
    assert raised.value.exit_code == code


def test_first_failure_is_the_cause_that_lost_rank_errors_report() -> None:
    groups = [ProcessGroup(Rank(rank, 3, 0, 1), HashStore()) for rank in range(3)]
    groups = [ProcessGroup(group.rank, groups[0]._store) for group in groups]
    for group, error in zip(groups, (ConflictError("Too little memory."), TransientError("Lost.")), strict=False):
        with pytest.raises(JobError), group:
            raise error
    with pytest.raises(JobError, match="Too little memory") as raised, groups[2].lost_rank_errors():
        raise dist.DistNetworkError("failed to recv")
    assert raised.value.exit_code == 78


def test_silent_store_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(HashStore):
        def check(self, keys: list[str]) -> bool:
            threading.Event().wait(60)
            return False

    monkeypatch.setattr("inat_job.distributed.failures._PATIENCE_S", 0.2)
    with (
        pytest.raises(TransientError, match="rank of this run was lost"),
        ProcessGroup(Rank(1, 2, 0, 1), Cut()).lost_rank_errors(),
    ):
        raise dist.DistNetworkError("failed to recv")


def test_rank_lost_while_connecting_or_sharing_a_file_is_transient(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("[/src/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:3981")

    store = HashStore()
    group = ProcessGroup(Rank(0, 2, 0, 1), store)
    monkeypatch.setattr(dist, "init_process_group", broken)
    monkeypatch.setattr(dist, "broadcast", broken)
    monkeypatch.setattr(group, "barrier", lambda: None)
    with pytest.raises(TransientError):
        group.init_collectives(cuda=False)
    (tmp_path / "x.ckpt").write_bytes(b"x")
    with pytest.raises(TransientError):
        group.broadcast_file(tmp_path / "x.ckpt")


def test_single_process_barrier_returns_at_once() -> None:
    ProcessGroup().barrier()
