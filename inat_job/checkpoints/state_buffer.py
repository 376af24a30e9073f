"""A copy of the training state in host memory, so that a thread can write it while training goes on."""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from inat_job.checkpoints.training_state import State, Write, write

_ALIGNMENT = 64
"""Bytes between the starts of two copies are a multiple of this, which fits every dtype."""


class StateBuffer:
    """Memory for the copy of one state, used again for each checkpoint; it grows when a state needs more.

    It is pinned if the state has tensors on a GPU.
    """

    def __init__(self) -> None:
        self._host = torch.empty(0, dtype=torch.uint8)

    def copy(self, state: State) -> Write:
        """Copy a state as it is now; returns what writes the copy to a path. The next call overwrites the copy.

        Tensors on the CPU are in host memory when this returns. Those on a GPU are copied there, in order with the
        work that is queued, and from there to host memory on a stream of its own, for which only the write waits.
        """
        leaves = tree_leaves(state)
        unique = {id(each): each for each in leaves if isinstance(each, torch.Tensor) and each.numel()}.values()
        on_gpu = [each for each in unique if _is_on_gpu(each)]
        on_cpu = [each for each in unique if not _is_on_gpu(each)]
        tensors, gpu_bytes = [*on_gpu, *on_cpu], _bytes_of(on_gpu)
        self._reserve(_bytes_of(tensors), pinned=bool(on_gpu))
        copies = _views(self._host, tensors)
        arrived = _send(_staged(on_gpu), self._host[:gpu_bytes]) if on_gpu else _nothing_to_wait_for
        _copy_to_host(copies[len(on_gpu) :], on_cpu)
        # Whatever else is in the state is copied as it is: a state dict keeps its `_metadata`.
        copied = deepcopy(state, {id(each): copy for each, copy in zip(tensors, copies, strict=True)})
        return partial(_write_when_arrived, copied, arrived)

    def _reserve(self, size: int, pinned: bool) -> None:
        if size > self._host.numel():
            self._host = torch.empty(0, dtype=torch.uint8)  # the old memory is free before the new is asked for
            self._host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)


def _write_when_arrived(state: State, arrived: Callable[[], None], path: Path) -> tuple[str, int]:
    arrived()
    return write(state, path)


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _staged(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of bytes on the GPU with copies of all `tensors`: the next optimiser step overwrites these."""
    memory = torch.empty(_bytes_of(tensors), dtype=torch.uint8, device=tensors[0].device)
    pairs = sorted(zip(_views(memory, tensors), tensors, strict=True), key=_dtype_of_copy)
    for _, group in groupby(pairs, key=_dtype_of_copy):  # of mixed dtypes, each tensor would be a launch of its own
        copies, originals = zip(*group, strict=True)
        torch._foreach_copy_(list(copies), list(originals))
    return memory


def _dtype_of_copy(pair: tuple[torch.Tensor, torch.Tensor]) -> str:
    return str(pair[0].dtype)


def _copy_to_host(copies: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    """Copy with one thread: torch would start several for each tensor, which takes longer. From a GPU torch copies."""
    for copy, tensor in zip(copies, tensors, strict=True):
        if tensor.device.type == "cpu" and copy.stride() == tensor.stride():  # without gaps, since a clone has none
            ctypes.memmove(copy.data_ptr(), tensor.data_ptr(), tensor.nbytes)
        else:
            copy.copy_(tensor)


def _send(staged: torch.Tensor, host: torch.Tensor) -> Callable[[], None]:
    """Start copying bytes from a GPU to pinned memory; returns what waits for the end, without Python's lock.

    The stream of the caller goes on.
    """
    stream = torch.cuda.Stream(staged.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(staged.device))
    with torch.cuda.stream(stream):
        host.copy_(staged, non_blocking=True)
    staged.record_stream(stream)  # it is freed here, and used again only after the copy
    # Blocking, so that the waiting thread sleeps instead of spinning.
    end = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    end.record(stream)
    return end.synchronize


def _nothing_to_wait_for() -> None:
    pass


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(map(_room, tensors))


def _room(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _views(memory: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors like `tensors`, one after the other in `memory` (bytes), with the strides that a clone would have.

    In host memory each has a storage of its own, as torch.save writes whole storages.
    """
    starts = accumulate(map(_room, tensors), initial=0)
    return [_view(memory, start, like) for start, like in zip(starts, tensors, strict=False)]


def _view(memory: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    end = start + like.nbytes
    part = memory[start:end] if memory.is_cuda else torch.from_numpy(memory.numpy()[start:end])
    strides = torch.empty_like(like, device="meta").stride()
    return part.view(like.dtype).as_strided(like.shape, strides)
