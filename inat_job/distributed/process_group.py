"""The ranks of a run and what they exchange, in the words of torch.distributed.

Two channels: plain values go through a key-value store hosted by rank 0, where a waiting rank still sees the stop
signal and can wait for hours; tensors and files go through torch.distributed's collectives, which time out.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from inat_job import signals
from inat_job.distributed import ranks
from inat_job.distributed.failures import FailureCause, lost_rank_errors
from inat_job.distributed.peer_wait import LIMIT_S, PeerWait, named_by_machine
from inat_job.distributed.ranks import SINGLE_RANK, Rank
from inat_job.errors import JobError, Preempted, TransientError
from inat_job.signals import StopFlag

COLLECTIVE_TIMEOUT_S = 180.0
"""A collective without an answer for so long means a lost rank; TCP takes a minute to recover from a cut of 30 s."""

STOPPED_BY_ANOTHER_RANK = "the stop of another rank"
"""The reason of a stop that began on another rank."""

_POLL_S = 0.1
_FAREWELL_S = 10.0
_CHUNK = 2**26
_FINISHED = "finished"


class ProcessGroup:
    """One rank among the ranks of a run. With a single rank, every call returns its own value at once.

    All ranks make the same calls in the same order. As a context manager it records the error that ends the block, so
    that other machines learn the cause; after a clean block, all ranks wait until rank 0 has finished too.
    """

    def __init__(
        self,
        rank: Rank = SINGLE_RANK,
        store: Store | None = None,
        stop: StopFlag | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        self.rank, self._limit_s = rank, limit_s
        self.cause = FailureCause(store)
        self._store, self._stop = store, stop or StopFlag()
        self._broadcasts = self._barriers = 0
        self._cpu_group: Any = None
        self._pending: tuple[Tensor, Any] | None = None
        self._scratch: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, JobError):
                self.cause.record(error)
            elif error is None:
                self._finish_or_record()
        finally:
            if self._scratch:
                self._scratch.cleanup()

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self.rank.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes to the run folder."""
        return self.rank.rank == 0

    def init_collectives(self, cuda: bool) -> None:
        """Initialise torch.distributed once all ranks are here: gloo for CPU tensors, NCCL for GPU tensors."""
        if self.size == 1 or dist.is_initialized():
            return
        assert self._store
        self.barrier()
        with self.lost_rank_errors():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=PrefixStore("tensors", self._store),
                rank=self.rank.rank,
                world_size=self.size,
                timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
            )
            self._cpu_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))

    def barrier(self) -> None:
        """Wait until all ranks are here, for up to --rendezvous-minutes, which no collective would."""
        if self.size == 1:
            return
        assert self._store
        self._barriers += 1
        key = f"barrier/{self._barriers}"
        with self.lost_rank_errors(), PeerWait(self.rank, self._limit_s) as wait:
            self._store.set(f"{key}/{self.rank.rank}", "here")
            arrived = self._store.add(key, 1)
            while arrived < self.size:
                self._wait(wait, lambda: self._missing(key), "waiting for the other ranks")
                arrived = self._store.add(key, 0)

    def wait_for_rank_0(self) -> None:
        """Wait for rank 0's first broadcast: a store that torchrun's agent hosts is there before rank 0."""
        if self.is_main:
            return
        assert self._store
        with self.lost_rank_errors(), PeerWait(self.rank, self._limit_s) as wait:
            while not self._store.check([_broadcast_key(1)]):
                self._wait(wait, lambda: "Rank 0", "waiting for rank 0")

    def _wait(self, wait: PeerWait, missing: Callable[[], str], doing: str) -> None:
        if wait.is_over:
            raise TransientError(
                f"{missing()} did not come to {wait.address} within {wait.limit}: check that it runs and can reach "
                "that address, raise --rendezvous-minutes, or try again."
            )
        wait.report(lambda: f"{missing()} did not come to {wait.address} yet")
        self._pause(doing)

    def _missing(self, key: str) -> str:
        """The ranks that are not at a barrier."""
        assert self._store
        missing = [rank for rank in range(self.size) if not self._store.check([f"{key}/{rank}"])]
        return named_by_machine(missing, self.rank.local_world_size).capitalize() or "A rank"

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value (plain JSON) on every rank."""
        if self.size == 1:
            return value
        self._broadcasts += 1
        return self._exchange(_broadcast_key(self._broadcasts), value, sends=self.is_main)

    def broadcast_on_node(self, value: Any = None) -> Any:
        """The value (plain JSON) of each machine's first rank, on every rank of that machine."""
        if self.rank.local_world_size == 1:
            return value
        self._broadcasts += 1
        return self._exchange(f"node/{self.rank.node_rank}/{self._broadcasts}", value, sends=self.rank.local_rank == 0)

    def broadcast_file(self, path: Path | None) -> Path:
        """The path of rank 0's file; on the other ranks, of a copy that is deleted when the group's block ends."""
        if self.size == 1:
            assert path
            return path
        size = int(self.broadcast(path.stat().st_size if path else None))
        with self.lost_rank_errors():
            if self.is_main:
                assert path
                _send(path, size)
                return path
            copy = self._scratch_folder() / f"rank{self.rank.rank}.ckpt"
            _receive(copy, size)
            return copy

    def any_rank_delayed(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any rank raised each flag at the previous call, so that no device waits for another rank's answer.

        With a single rank, the flags of this call.
        """
        if self.size == 1:
            return flags
        previous, self._pending = self._pending, self._reduce_any(flags)
        return _result(previous) if previous else (False,) * len(flags)

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any rank raises each flag now. All ranks wait; a pending `any_rank_delayed` is dropped."""
        if self.size == 1:
            return flags
        self.drop_pending()
        return _result(self._reduce_any(flags))

    def drop_pending(self) -> None:
        """Wait for the pending `any_rank_delayed` and forget its result."""
        if self._pending:
            _result(self._pending)
            self._pending = None

    def all_reduce_mean(self, value: Tensor) -> float:
        """The mean of a scalar over the ranks."""
        if self.size == 1:
            return float(value)
        total = value.detach().float().cpu().clone()
        dist.all_reduce(total, group=self._cpu_group)
        return float(total) / self.size

    def all_gather_rows(self, rows: Tensor, count: int) -> Tensor:
        """(count, ...) of which rank r holds the rows r, r + size, r + 2 size, ...: (rows, ...), equally many each.

        Rows beyond `count` are padding.
        """
        if self.size == 1:
            return rows[:count]
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous(), group=self._cpu_group)
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    def lost_rank_errors(self) -> AbstractContextManager[None]:
        """Turn what torch.distributed raises when another rank is lost into our errors, see failures.py."""
        return nullcontext() if self.size == 1 else lost_rank_errors(self._stop, self.cause.read_in_time)

    def _finish_or_record(self) -> None:
        try:
            self._finish()
        except JobError as error:
            self.cause.record(error)
            raise

    def _finish(self) -> None:
        """Wait until rank 0 has finished the run. Rank 0, whose process hosts the store, lets the others read that."""
        if self.size == 1:
            return
        assert self._store
        self._exchange(_FINISHED, True, sends=self.is_main)
        with self.lost_rank_errors():
            seen, began = self._store.add("seen", 1), time.monotonic()
            while self.is_main and seen < self.size and time.monotonic() - began < _FAREWELL_S:
                time.sleep(_POLL_S)
                seen = self._store.add("seen", 0)

    def _exchange(self, key: str, value: Any, sends: bool) -> Any:
        assert self._store
        with self.lost_rank_errors():
            if sends:
                self._store.set(key, json.dumps(value))
                return value
            while not self._store.check([key]):
                self._pause("waiting for rank 0")
            return json.loads(self._store.get(key))

    def _reduce_any(self, flags: tuple[bool, ...]) -> tuple[Tensor, Any]:
        tensor = torch.tensor(flags, dtype=torch.int32)
        return tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._cpu_group, async_op=True)

    def _pause(self, doing: str) -> None:
        """Wait a moment. Raises what ended another rank, and Preempted."""
        cause = self.cause.read()
        if isinstance(cause, Preempted):
            self._stop.set(STOPPED_BY_ANOTHER_RANK)
        elif cause:
            raise cause
        signals.check(self._stop, doing)
        time.sleep(_POLL_S)

    def _scratch_folder(self) -> Path:
        """A temporary folder; in the launcher's own, which is deleted even when a rank is killed."""
        if self._scratch is None:
            message = ranks.message_file()
            self._scratch = TemporaryDirectory(prefix="inat-job-", dir=message.parent if message else None)
        return Path(self._scratch.name)


def _broadcast_key(number: int) -> str:
    return f"broadcast/{number}"


def _send(path: Path, size: int) -> None:
    with path.open("rb") as file:
        for count in _chunks(size):
            dist.broadcast(torch.frombuffer(bytearray(file.read(count)), dtype=torch.uint8), src=0)


def _receive(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for count in _chunks(size):
            block = torch.empty(count, dtype=torch.uint8)
            dist.broadcast(block, src=0)
            file.write(block.numpy().data)


def _result(pending: tuple[Tensor, Any]) -> tuple[bool, ...]:
    tensor, work = pending
    work.wait()
    return tuple(bool(flag) for flag in tensor.tolist())


def _chunks(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, _CHUNK)
        size -= _CHUNK


SINGLE_PROCESS = ProcessGroup()
"""The group of a run on one device."""
