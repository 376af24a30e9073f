"""Training metrics: rows in metrics.jsonl, tracker values, progress and a line per epoch, and images per second.

metrics.jsonl survives a resume: rows of lost steps are dropped.
"""

import json
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from inat_job import events
from inat_job.checkpoints.manifest import Manifest
from inat_job.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from inat_job.job_status import STATUS
from inat_job.models.classifier import Classifier
from inat_job.storage.disk import disk_errors, parse_json
from inat_job.storage.run_folder import RunFolder
from inat_job.telemetry import metric_lines

NAME = "metrics.jsonl"

LOG_EVERY = 10
"""Optimiser steps between two rows; the last step of an epoch has one too."""

WARM_UP_STEPS = 10
"""Steps at the start of an attempt that the rate leaves out."""

LogValues = Callable[[dict[str, float], int], None]

NO_VALUES: Mapping[str, float] = {}


class MetricsFile:
    """The rows of a run's metrics, in the file and in memory."""

    def __init__(self, folder: RunFolder, resumed: Manifest | None) -> None:
        self._path = folder.path(NAME)
        # A checkpoint that never reached the store may have rows that never did either.
        local = _rows(self._path, resumed)
        self.rows = max(local, _rows(folder.fetch(NAME), resumed), key=len) if resumed else []
        # One descriptor for good: a job that was taken over goes on writing to its own file, not to its successor's.
        with folder.drafts(".") as drafts:
            self._descriptor = os.open(drafts / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            weakref.finalize(self, os.close, self._descriptor)
            self._write("".join(json.dumps(row) + "\n" for row in self.rows))
            os.fsync(self._descriptor)

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Append one row."""
        row = {"step": step, **values}
        self.rows.append(row)
        with disk_errors(self._path):
            self._write(json.dumps(row) + "\n")

    def _write(self, text: str) -> None:
        left = memoryview(text.encode())
        while left:
            left = left[os.write(self._descriptor, left) :]


def probe_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the head that a run began with reached in validation, if it was solved for: the rows of step 0 are its."""
    first = next((row for row in rows if row["step"] == 0 and "val_loss" in row), None)
    return {name: first[name] for name in ("val_accuracy", "val_loss")} if first else None


def _rows(path: Path | None, resumed: Manifest | None) -> list[dict[str, Any]]:
    if path is None or resumed is None or not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [row for row in map(_parse, lines) if row and _is_before(row, resumed)]


def _is_before(row: dict[str, Any], resumed: Manifest) -> bool:
    """Whether a row is older than the checkpoint that a run resumes from, whose validation may be still to come."""
    if row["step"] == resumed.step and resumed.awaits_validation:
        return "val_loss" not in row
    return bool(row["step"] <= resumed.step)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:  # truncated by a kill
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return row if all(isinstance(value, int | float) for value in row.values()) else None


class _PendingLoss:
    """A step's loss on its way from the device, so that training need not wait until it can be read."""

    def __init__(self, module: Classifier, step: int, row: dict[str, Any]) -> None:
        self.module, self.step, self.row = module, step, row
        values = torch.stack([module.loss, module.finite.float()])
        self._values = values.to("cpu", non_blocking=values.is_cuda)  # elsewhere no event says that it has arrived
        self._copied: Any = torch.cuda.Event() if values.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied:
            self._copied.record()

    def is_there(self) -> bool:
        """Whether reading needs no waiting."""
        return self._copied is None or bool(self._copied.query())

    def read(self) -> tuple[Tensor, bool]:
        """The loss, on the CPU, and whether it and all before it are finite."""
        if self._copied:
            self._copied.synchronize()
        loss, finite = self._values.unbind()
        return loss, bool(finite.numpy())


class MetricsLog(Callback):
    """Metrics of a fit: rows in metrics.jsonl, tracker values, progress, and the job's status.

    `rate` is its images per second so far, `first_step_at` the time.perf_counter() of its first step; both may be
    None.
    """

    def __init__(
        self, file: MetricsFile | None, log: LogValues, batch_size: int, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self._file, self._log, self._batch_size, self._group = file, log, batch_size, group
        self._batches = self._timed_batches = 0
        self._timed_s = self._mark = self._trained_s = self._waited_s = 0.0
        self.first_step_at: float | None = None
        self._epoch, self._epoch_began = -1, 0.0
        self._lr: float | None = None
        self._losses: list[Tensor] = []
        self._unread: _PendingLoss | None = None
        rows = file.rows if file else []
        self._best = max((_score(row) for row in rows if {"val_loss", "val_accuracy"} <= row.keys()), default=None)
        self._progress = self._validated = events.progress("train")

    @property
    def rate(self) -> float | None:
        return self._timed_batches * self._batch_size / self._timed_s if self._timed_s else None

    def pause(self) -> None:
        """Stop the clock of training steps until the next one begins: something else works meanwhile."""
        self._mark = 0.0

    def flush(self) -> None:
        """Write the row whose loss was not read yet. Raises ConflictError if a loss was not finite.

        A collective call: all ranks make it at the same step.
        """
        if self._unread is None:
            return
        unread, self._unread = self._unread, None
        loss, finite = unread.read()
        unread.module.check_finite(unread.step, finite)
        mean = self._group.all_reduce_mean(loss)
        STATUS.train_loss, STATUS.images_per_s = round(mean, 4), self.rate and round(self.rate, 1)
        self._add(unread.step, {**unread.row, "train_loss": mean})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        STATUS.device, STATUS.steps_per_epoch = str(trainer.strategy.root_device), steps
        STATUS.epoch, STATUS.epochs = trainer.current_epoch, STATUS.epochs or trainer.max_epochs
        STATUS.step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if self._mark == 0.0:
            self._mark = now
            events.phase("train")
        self._waited_s += now - self._mark  # since the last batch ended, the loader was at work
        if self.first_step_at is None:
            self.first_step_at = self._mark
        if self._epoch != trainer.current_epoch:
            self._begin_epoch(trainer, batch_idx)
        self._lr = _lr(trainer)

    def _begin_epoch(self, trainer: Trainer, batch_idx: int) -> None:
        self._epoch, self._losses = trainer.current_epoch, []
        self._epoch_began = 0.0 if batch_idx else time.monotonic()  # the rest of one takes less than an epoch
        self._progress = events.progress(f"epoch {self._epoch + 1}/{STATUS.epochs}", transient=True)
        self._progress(batch_idx, int(trainer.num_training_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Classifier)
        now = time.perf_counter()
        self._batches += 1
        self._trained_s += now - self._mark
        if self._batches > WARM_UP_STEPS * trainer.accumulate_grad_batches:
            self._timed_s += now - self._mark
            self._timed_batches += 1
        self._mark = now
        step = trainer.global_step
        STATUS.step, STATUS.images = step, self._batches * self._batch_size
        STATUS.trained_s, STATUS.waited_s = self._trained_s, self._waited_s
        self._losses.append(pl_module.loss)
        self._progress(batch_idx + 1, int(trainer.num_training_batches), self._note())
        steps, batches = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        is_last = steps == int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        if batches == 0 and (step % LOG_EVERY == 0 or is_last):
            self.flush()
            self._unread = _PendingLoss(pl_module, step, {"epoch": trainer.current_epoch, "lr": self._lr})
        # Ranks read together, so among several it waits for the next row.
        if self._unread and self._group.size == 1 and self._unread.is_there():
            self.flush()

    def _note(self) -> str:
        """What the bar says beside progress and time; the loss is one that was read from the device anyway."""
        loss = "" if STATUS.train_loss is None else f"loss {STATUS.train_loss:.3f}  "
        rate = self._batches * self._batch_size / self._trained_s if self._trained_s else 0.0
        return f"{loss}{rate:,.0f} images/s"

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flush()
        events.phase("validate")
        self._validated = events.progress("validate", transient=True)
        self._validated(0, sum(map(int, trainer.num_val_batches)))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._validated(batch_idx + 1, sum(map(int, trainer.num_val_batches)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.validated(pl_module, trainer.global_step, trainer.current_epoch)

    def validated(self, classifier: Classifier, step: int, epoch: int) -> None:
        """Report the validation after `step`, the last of `epoch` (from 0)."""
        self.pause()
        values = {"val_loss": classifier.val_loss, "val_accuracy": classifier.val_accuracy}
        self._add(step, {"epoch": epoch, **values})
        self.end_epoch(step, epoch, values)

    def end_epoch(self, step: int, epoch: int, values: Mapping[str, float] = NO_VALUES) -> None:
        """Report the end of `epoch` (from 0), and the values of its validation if it had one."""
        self.flush()
        rounded = {name: round(value, 4) for name, value in values.items()}
        rate = round(self.rate, 1) if self.rate else None
        STATUS.epoch, STATUS.images_per_s, STATUS.val_accuracy = epoch + 1, rate, rounded.get("val_accuracy")
        events.emit("epoch", epoch=epoch + 1, step=step, **rounded, images_per_s=rate, **self._of_epoch(epoch, values))
        events.write_metrics(metric_lines.lines({"train_loss": STATUS.train_loss, **rounded, "images_per_s": rate}))

    def _of_epoch(self, epoch: int, values: Mapping[str, float]) -> dict[str, Any]:
        """What else the log says of an epoch; its loss is the mean over the steps of this attempt."""
        loss = self._group.all_reduce_mean(torch.stack(self._losses).mean()) if self._losses else None
        self._losses = []
        score = _score(values) if values else None
        best = score is not None and (self._best is None or score > self._best)
        self._best = score if best else self._best
        left = None
        if STATUS.epochs and self._epoch_began:
            left = round((STATUS.epochs - epoch - 1) * (time.monotonic() - self._epoch_began), 1)
        return {
            "epochs": STATUS.epochs,
            "train_loss": loss if loss is None else round(loss, 4),
            "lr": self._lr,
            "best": best,
            "left_s": left,
        }

    def _add(self, step: int, values: dict[str, float]) -> None:
        if self._file:
            self._file.add(step, values)
        self._log(values, step)


def _score(values: Mapping[str, float]) -> tuple[float, float]:
    """The larger, the better: by accuracy, then by loss, as the best checkpoint is chosen."""
    return values["val_accuracy"], -values["val_loss"]


def _lr(trainer: Trainer) -> float:
    """The largest learning rate of the groups: that of the head."""
    return max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)
