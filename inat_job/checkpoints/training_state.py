"""The state that a resume needs: gathered by Lightning, written by us in one pass that also hashes it."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from torch.utils._pytree import tree_map

from inat_job.errors import BadDataError, ConflictError

State = dict[str, Any]
Write = Callable[[Path], tuple[str, int]]
"""Writes a state to a path; returns its SHA-256 and its size in bytes."""


_WHOLE = {"state_dict", "loops", "optimizer_states", "lr_schedulers", "epoch", "global_step"}
"""What a resume cannot do without."""


class InMemoryCheckpointIO(TorchCheckpointIO):
    """Takes what Lightning would write, and writes nothing: Lightning builds the whole file in memory, twice."""

    def __init__(self) -> None:
        self.state: State = {}

    def save_checkpoint(self, checkpoint: State, path: Any, storage_options: Any = None) -> None:
        self.state = checkpoint

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> State:
        state = read(Path(path))
        if missing := _WHOLE - state.keys():  # for which Lightning would begin again without a word
            raise BadDataError(f"{path} lacks {', '.join(sorted(missing))}: delete it with its manifest.")
        return state


def collect(trainer: Trainer) -> State:
    """Everything that decides the rest of the run; on a GPU copied there, since training goes on while it is written.

    On a CPU the tensors are the living ones: write them before the next step.
    """
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, InMemoryCheckpointIO)
    trainer.save_checkpoint("unused")
    state, io.state = io.state, {}
    return tree_map(_copied, state) if can_write_later(trainer) else state


def can_write_later(trainer: Trainer) -> bool:
    """Whether a gathered state may be written later, by another thread."""
    return trainer.strategy.root_device.type == "cuda"


def write(state: State, path: Path) -> tuple[str, int]:
    """Write a state to `path`, whole or not at all; returns its SHA-256 and size. Raises ConflictError."""
    draft = path.with_suffix(".tmp")
    try:
        with draft.open("wb") as file:
            out = _Hashing(file)
            try:
                torch.save(state, out)  # type: ignore[arg-type]  # it only writes
            except RuntimeError:  # torch's own writer, confused by the error that it met
                if out.error:
                    raise out.error from None
                raise
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConflictError(f"{path} cannot be written ({error.strerror}): free some disk, or move it.") from error
    return out.digest.hexdigest(), out.size


def read(path: Path) -> State:
    """The state in a file, on the CPU; nothing in it is run. Raises BadDataError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        detail = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise BadDataError(f"{path} is no checkpoint of this job ({detail}): delete it with its manifest.") from None
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
        raise BadDataError(f"{path} is no checkpoint of this job (it holds no weights): delete it with its manifest.")
    return state


class _Hashing:
    """A file that hashes what is written to it: what is meant, not what a disk makes of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, block: Any) -> int:
        try:
            self._file.write(block)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(block)
        self.size += len(block)
        return len(block)

    def flush(self) -> None:
        self._file.flush()


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) and value.is_cuda else value
