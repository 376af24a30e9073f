"""Keeps what training has reached: when a checkpoint is due, what goes into it, and what a signal or the clock ends."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from inat_job import events
from inat_job.data.draws import step_seed
from inat_job.data.module import Pictures
from inat_job.errors import Preempted
from inat_job.models.classifier import Classifier
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.training.checkpoints import Checkpoints, Manifest, stale
from inat_job.training.metrics_log import MetricsLog

_GRACE_SHARE = 0.7
"""Share of the grace that a save may take before it is warned about."""


class Keeper(Callback):
    """Seeds each step, saves checkpoints, and ends training on the stop flag or when `--max-time` is over."""

    def __init__(
        self,
        settings: Settings,
        pictures: Pictures,
        checkpoints: Checkpoints,
        resumed: Manifest | None,
        log: MetricsLog,
        stop: StopFlag,
    ) -> None:
        self._settings, self._pictures, self._checkpoints, self._stop = settings, pictures, checkpoints, stop
        self._log = log
        self._earlier = [_ended(attempt) for attempt in resumed.history] if resumed else []
        self._started_step = resumed.step if resumed else 0
        self._earlier_s = resumed.train_s if resumed else 0.0
        self._accuracies = list(resumed.accuracies) if resumed else []
        self._started = self._saved = time.monotonic()
        self._out_of_time = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop.install()  # Lightning put its own handler in place just before
        self._started = self._saved = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        torch.manual_seed(step_seed(self._settings.train.seed, step, trainer.global_rank))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or done == trainer.num_training_batches:
            return  # in mid-step there is nothing whole to save; after the last step validation comes first
        if self._stop():
            self._save(trainer, "preempted", None)
            self._preempted(trainer.global_step)
        if self._overtime():
            self._out_of_time = trainer.should_stop = True
        elif time.monotonic() - self._saved >= 60 * self._settings.run.checkpoint_minutes:
            self._save(trainer, "running", None)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._stop():
            self._preempted(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self._accuracies.append(pl_module.val_accuracy)
        why = self._why_ended(trainer.current_epoch + 1 == trainer.max_epochs)
        complete = why is not None
        stopped = self._stop() and not complete
        self._save(trainer, why or ("preempted" if stopped else "running"), pl_module.val_accuracy, complete)
        trainer.should_stop = complete
        if stopped:
            self._preempted(trainer.global_step)

    def _why_ended(self, last: bool) -> str | None:
        """Why training is over after this epoch, or None while it isn't."""
        patience = self._settings.train.early_stop
        if last:
            return "finished"
        if self._out_of_time or self._overtime():
            return "max-time"
        return "early stop" if patience and stale(self._accuracies) >= patience else None

    def _overtime(self) -> bool:
        limit = self._settings.train.max_time
        return limit is not None and self._train_s() >= limit

    def _train_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._started

    def _save(self, trainer: Trainer, why: str, val_accuracy: float | None, complete: bool = False) -> None:
        module = trainer.lightning_module
        assert isinstance(module, Classifier)
        module.check_finite(trainer.global_step)
        begun = time.monotonic()
        attempt = {"started_step": self._started_step, "ended_step": trainer.global_step, "why": why}
        manifest = Manifest(
            step=trainer.global_step,
            epoch=trainer.current_epoch + 1 if val_accuracy is not None else trainer.current_epoch,
            val_accuracy=val_accuracy,
            val_loss=None if val_accuracy is None else module.val_loss,
            accuracies=list(self._accuracies),
            complete=complete,
            data_digest=self._pictures.cache.index.digest,
            split_digest=self._pictures.split_digest,
            train_s=self._train_s(),
            images_per_s=self._log.rate,
            history=[*self._earlier, attempt],
        )
        self._checkpoints.save(lambda path: _write(trainer, path), manifest)
        self._saved = time.monotonic()
        self._log.pause()
        self._mind_the_grace(self._saved - begun)

    def _mind_the_grace(self, took: float) -> None:
        grace = self._settings.run.grace_seconds
        if took > _GRACE_SHARE * grace:
            events.warn(f"A checkpoint took {took:.1f} s to store, and --grace-seconds is {grace:g}: raise the grace.")

    def _preempted(self, step: int) -> None:
        stored = {manifest.step for manifest in self._checkpoints.manifests}
        if step in stored:
            raise Preempted(f"Preempted; step {step} is stored in {self._checkpoints.uri}: run the same command again.")
        at = f"only up to step {max(stored)}" if stored else "not at all yet"
        raise Preempted(f"Preempted; training is stored in {self._checkpoints.uri} {at}: run the same command again.")


def _write(trainer: Trainer, path: Path) -> None:
    trainer.save_checkpoint(path)


def _ended(attempt: dict[str, Any]) -> dict[str, Any]:
    """An attempt that nobody ended was killed."""
    return {**attempt, "why": "killed" if attempt["why"] == "running" else attempt["why"]}
