"""A checkpoint from training until it is durable: written, hashed, stored, verified; and what it costs training."""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from inat_job.bench.epochs import Live
from inat_job.bench.measurement import Measured, seconds
from inat_job.checkpoints import training_state
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest
from inat_job.checkpoints.uploader import Uploader
from inat_job.errors import TransientError

_PATIENCE_S = 600.0
_BLOCK = bytes(2**22)


@dataclass(frozen=True)
class Stored:
    """One checkpoint: its bytes, the seconds until it was durable, those that training waited for it, and the
    processor's seconds that it took in the background."""

    size: int
    seconds: float
    waited_s: float
    background_s: float


def checkpoint(
    live: Live, checkpoints: CheckpointIndex, uploader: Uploader, runs: int, epoch_s: float
) -> list[Measured]:
    """Store one to warm up and `runs` more, each followed by a plain file of as many bytes on this machine's disk."""
    target = checkpoints.folder.path("plain")
    stored, plain = [], []
    for number in range(runs + 1):
        each = _store(live, checkpoints, uploader, live.trainer.global_step + number + 1)
        took = seconds(partial(_write, target, each.size))
        if number:
            stored.append(each)
            plain.append(each.size / 1e6 / took)
    target.unlink()
    values = tuple(each.size / 1e6 / each.seconds for each in stored)
    found = [Measured("checkpoint until durable", "MB/s", values, "plain file", tuple(plain))]
    if epoch_s:
        costs = tuple((each.waited_s + each.background_s) / epoch_s for each in stored)
        note = "what training waits, and the processor's time in the background"
        found.append(Measured("a checkpoint an epoch", "of an epoch", costs, note=note))
    return found


def _store(live: Live, checkpoints: CheckpointIndex, uploader: Uploader, step: int) -> Stored:
    begun, own, all_threads = time.perf_counter(), time.thread_time(), time.process_time()
    write = partial(training_state.write, training_state.collect(live.trainer))
    uploader.save(_manifest(step), write, deferred=training_state.can_write_later(live.trainer))
    waited = time.perf_counter() - begun
    if not uploader.flush(_PATIENCE_S):
        raise TransientError(f"A checkpoint was not stored in {_PATIENCE_S:g} s: check --output.")
    took = time.perf_counter() - begun
    background = time.process_time() - all_threads - (time.thread_time() - own)
    return Stored(checkpoints.stored[-1].size, took, waited, background)


def _manifest(step: int) -> Manifest:
    return Manifest(
        step=step,
        epoch=0,
        val_accuracy=None,
        val_loss=None,
        accuracies=[],
        validate=False,
        ended="",
        data_digest="",
        split_digest="",
        train_s=0.0,
        images_per_s=None,
    )


def _write(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, len(_BLOCK)):
            file.write(_BLOCK[: size - start])
        file.flush()
        os.fsync(file.fileno())
