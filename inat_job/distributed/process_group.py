"""The ranks of a run at work together: how they meet, what rank 0 tells the others, and how all agree.

Words go by a store that rank 0 keeps, since whoever waits for a word can look out for the stop signal meanwhile and
wait as long as another rank's work takes; tensors go by torch.distributed.
"""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from inat_job import signals
from inat_job.distributed.failures import FailureCause, lost
from inat_job.distributed.ranks import SINGLE_RANK, Rank
from inat_job.errors import Preempted, TransientError
from inat_job.signals import StopFlag

RENDEZVOUS_TIMEOUT_S = 3600.0
"""How long a rank waits for those of other machines, which may have images to prepare that it has already."""

LOST_S = 180.0
"""A collective that is not answered for so long means a lost rank; a cut of 30 s takes TCP a minute to mend."""

OF_ANOTHER = "the stop of another rank"
"""Why a rank stops that was not stopped itself."""

_TICK_S = 0.1
_PARTING_S = 10.0
_CHUNK = 2**26
_END = "end"


class ProcessGroup:
    """A rank among the ranks of its run; alone, everything that it tells or asks comes back to it.

    Every rank makes the same calls in the same order, but for `leads`.
    """

    def __init__(self, rank: Rank = SINGLE_RANK, store: Store | None = None, stop: StopFlag | None = None) -> None:
        self.rank = rank
        self._store, self._stop = store, stop or StopFlag()
        self.cause = FailureCause(store)
        self._told = self._gathered = 0
        self._votes: Any = None
        self._vote: tuple[Tensor, Any] | None = None

    @property
    def size(self) -> int:
        return self.rank.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return self.rank.rank == 0

    def init_tensors(self, cuda: bool) -> None:
        """Have tensors go between all ranks, once all of them are there: gloo's for a CPU, NCCL's for GPUs."""
        if self.size == 1 or dist.is_initialized():
            return
        assert self._store
        if cuda:
            torch.cuda.set_device(self.rank.local_rank)
        self.barrier()
        with self._lost():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=PrefixStore("tensors", self._store),
                rank=self.rank.rank,
                world_size=self.size,
                timeout=timedelta(seconds=LOST_S),
            )
            self._votes = dist.new_group(backend="gloo", timeout=timedelta(seconds=LOST_S))

    def barrier(self) -> None:
        """Wait until all ranks are here, however long their work takes until then, which no collective does."""
        if self.size == 1:
            return
        assert self._store
        self._gathered += 1
        key, begun = f"gathered/{self._gathered}", time.monotonic()
        with self._lost():
            here = self._store.add(key, 1)
            while here < self.size:
                self._pause("waiting for the other ranks")
                if time.monotonic() - begun > RENDEZVOUS_TIMEOUT_S:
                    raise TransientError(f"{self.size - here} of {self.size} ranks have not come: try again.")
                here = self._store.add(key, 0)

    def broadcast(self, value: Any = None) -> Any:
        """What rank 0 gives, a plain value, on every rank."""
        if self.size == 1:
            return value
        self._told += 1
        return self._word(f"told/{self._told}", value)

    def broadcast_on_node(self, value: Any = None) -> Any:
        """What the first rank of each machine gives, on every rank of that machine."""
        if self.rank.local_world_size == 1:
            return value
        self._told += 1
        return self._word(f"here/{self.rank.node_rank}/{self._told}", value, gives=self.rank.local_rank == 0)

    def broadcast_file(self, path: Path | None, into: Path | None = None) -> Path:
        """Rank 0's file, on the others as a copy in the folder `into`."""
        if self.size == 1:
            assert path
            return path
        with self._lost():
            return self._share(path, into)

    def _share(self, path: Path | None, into: Path | None) -> Path:
        size = int(self.broadcast(path.stat().st_size if path else None))
        if self.is_main:
            assert path
            with path.open("rb") as file:
                for count in _chunks(size):
                    dist.broadcast(torch.frombuffer(bytearray(file.read(count)), dtype=torch.uint8), src=0)
            return path
        assert into
        copy = into / f"rank{self.rank.rank}.ckpt"
        with copy.open("wb") as file:
            for count in _chunks(size):
                block = torch.empty(count, dtype=torch.uint8)
                dist.broadcast(block, src=0)
                file.write(block.numpy().data)
        return copy

    def any_rank_async(self, *flags: bool) -> tuple[bool, ...]:
        """What any rank wanted at the last vote: read a step late, so that no device waits for another's answer.

        Alone it is what this one wants now.
        """
        if self.size == 1:
            return flags
        last, self._vote = self._vote, self._cast(flags)
        return _counted(last) if last else (False,) * len(flags)

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """What any rank wants now; all of them wait for it. Ends the votes that were under way."""
        if self.size == 1:
            return flags
        self.drain()
        return _counted(self._cast(flags))

    def drain(self) -> None:
        """Forget the vote that is under way."""
        if self._vote:
            _counted(self._vote)
            self._vote = None

    def all_reduce_mean(self, value: Tensor) -> float:
        """The mean of a number over the ranks."""
        if self.size == 1:
            return float(value)
        total = value.detach().float().cpu().clone()
        dist.all_reduce(total, group=self._votes)
        return float(total) / self.size

    def all_gather_rows(self, part: Tensor, count: int) -> Tensor:
        """(count, ...) of which every rank has each `size`-th row, (rows, ...), as many as the others."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self._votes)
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    def finish(self) -> None:
        """Wait until rank 0 has finished the run; on rank 0, say so, and let the others hear it."""
        if self.size == 1:
            return
        assert self._store
        self._word(_END, True)
        with self._lost():
            heard = self._store.add("heard", 1)
            begun = time.monotonic()
            while self.is_main and heard < self.size and time.monotonic() - begun < _PARTING_S:
                time.sleep(_TICK_S)
                heard = self._store.add("heard", 0)

    @contextmanager
    def rank_errors(self) -> Iterator[None]:
        """Turn what a rank meets when another one is lost into our errors, see `lost`."""
        if self.size == 1:
            yield
            return
        with self._lost():
            yield

    def _lost(self) -> AbstractContextManager[None]:
        return lost(self._stop, self.cause.soon)

    def _word(self, key: str, value: Any, gives: bool | None = None) -> Any:
        assert self._store
        with self._lost():
            if self.is_main if gives is None else gives:
                self._store.set(key, json.dumps(value))
                return value
            while not self._store.check([key]):
                self._pause("waiting for rank 0")
            return json.loads(self._store.get(key))

    def _cast(self, flags: tuple[bool, ...]) -> tuple[Tensor, Any]:
        tensor = torch.tensor(flags, dtype=torch.int32)
        return tensor, dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._votes, async_op=True)

    def _pause(self, doing: str) -> None:
        told = self.cause.read()
        if isinstance(told, Preempted):
            self._stop.set(OF_ANOTHER)
        elif told:
            raise told
        signals.check(self._stop, doing)
        time.sleep(_TICK_S)


def _counted(vote: tuple[Tensor, Any]) -> tuple[bool, ...]:
    tensor, work = vote
    work.wait()
    return tuple(bool(flag) for flag in tensor.tolist())


def _chunks(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, _CHUNK)
        size -= _CHUNK


SINGLE_PROCESS = ProcessGroup()
"""The group of a run on one device."""
