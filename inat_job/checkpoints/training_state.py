"""The training state that a resume needs: collected by Lightning, written here in one pass that also hashes it."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from inat_job.errors import BadDataError, ConflictError

State = dict[str, Any]
Write = Callable[[Path], tuple[str, int]]
"""Writes a state to a path; returns its SHA-256 and its size in bytes."""

_REQUIRED = {"state_dict", "loops", "optimizer_states", "lr_schedulers", "epoch", "global_step"}
"""The entries without which no resume is exact."""


class InMemoryCheckpointIO(TorchCheckpointIO):
    """Keeps what Lightning would write, and writes nothing: Lightning itself builds the file in memory, twice."""

    def __init__(self) -> None:
        self.state: State = {}

    def save_checkpoint(self, checkpoint: State, path: Any, storage_options: Any = None) -> None:
        self.state = checkpoint

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> State:
        state = read(Path(path))
        if missing := _REQUIRED - state.keys():  # without them Lightning would silently start from the beginning
            raise BadDataError(f"{path} lacks {', '.join(sorted(missing))}: delete it with its manifest.")
        return state


def collect(trainer: Trainer) -> State:
    """Everything that decides the rest of the run, with the live tensors, which the next step overwrites."""
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, InMemoryCheckpointIO)
    trainer.save_checkpoint("unused")
    state, io.state = io.state, {}
    return state


def write(state: State, path: Path) -> tuple[str, int]:
    """Write a state to `path`, completely or not at all. Returns its SHA-256 and its size in bytes.

    Raises ConflictError.
    """
    draft = path.with_suffix(".tmp")
    try:
        with draft.open("wb") as file:
            out = _HashingFile(file)
            try:
                torch.save(state, out)  # type: ignore[arg-type]  # it only writes
            except RuntimeError:  # torch's writer hides the OSError that caused it
                if out.error:
                    raise out.error from None
                raise
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConflictError(
            f"{path} cannot be written ({error.strerror}): free some disk space, or choose another folder."
        ) from error
    return out.digest.hexdigest(), out.size


def read(path: Path) -> State:
    """The state in a file, on the CPU; no code in the file is run. Raises BadDataError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        detail = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        raise BadDataError(f"{path} is no checkpoint of this job ({detail}): delete it with its manifest.") from None
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
        raise BadDataError(f"{path} is no checkpoint of this job (it has no weights): delete it with its manifest.")
    return state


class _HashingFile:
    """A file that hashes what is written to it, before a disk can damage it."""

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
