"""Keeps what training has reached: when a checkpoint is due, what goes into it, and what a signal or the clock ends.

An epoch's checkpoint is taken before its validation, whose result is added to the manifest: a job that is stopped while
it validates loses nothing, and the next one validates first.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from inat_job.checkpoints import training_state
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest, stale
from inat_job.checkpoints.uploader import NullUploader, Uploader
from inat_job.data.module import ImageDataModule
from inat_job.data.rng import step_seed
from inat_job.distributed.process_group import OF_ANOTHER, SINGLE_PROCESS, ProcessGroup
from inat_job.errors import Preempted
from inat_job.models.classifier import Classifier
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.training.metrics_log import MetricsLog


class CheckpointCallback(Callback):
    """Seeds each step, takes checkpoints, and ends training on the stop flag or when `--max-time` is over.

    `ended` says why training is over, and is empty while it isn't.
    """

    def __init__(
        self,
        settings: Settings,
        images: ImageDataModule,
        checkpoints: CheckpointIndex,
        uploader: Uploader | NullUploader,
        log: MetricsLog,
        stop: StopFlag,
        resumed: Manifest | None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self._settings, self._images, self._stop, self._group = settings, images, stop, group
        self._checkpoints, self._uploader, self._log = checkpoints, uploader, log
        self._last = resumed
        self._accuracies = list(resumed.accuracies) if resumed else []
        self._earlier_s = resumed.train_s if resumed else 0.0
        self._started = self._taken = time.monotonic()
        self._out_of_time = False
        self.ended = resumed.ended if resumed else ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        torch.manual_seed(step_seed(self._settings.train.seed, step, trainer.global_rank))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or done == trainer.num_training_batches:
            return  # in mid-step there is nothing whole to save; the last step is saved as validation starts
        self._uploader.guard()
        stop, overtime, due = self._group.any_rank_async(self._stop(), self._overtime(), self._due())
        if stop:
            self._take(trainer)
            self._preempted()
        if overtime:
            self._out_of_time = trainer.should_stop = True
        elif due:
            self._take(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take(trainer, validate=True)
        self._go_on_unless_stopped()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._group.any_rank_async(self._stop(), False, False)[0]:
            self._preempted()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.validated(pl_module)
        trainer.should_stop = bool(self.ended)
        if not self.ended:
            self._go_on_unless_stopped()

    def validated(self, classifier: Classifier) -> None:
        """Add the validation's result to the last checkpoint, and decide whether training is over with it."""
        assert self._last
        self._accuracies.append(classifier.val_accuracy)
        self.ended = self._why_ended(self._last.epoch == self._settings.train.epochs)
        self._last = replace(
            self._last,
            val_accuracy=classifier.val_accuracy,
            val_loss=classifier.val_loss,
            accuracies=list(self._accuracies),
            validate=False,
            ended=self.ended,
            train_s=self._train_s(),
        )
        self._uploader.amend(self._last)

    def _why_ended(self, last: bool) -> str:
        patience = self._settings.train.early_stop
        overtime = self._group.any_rank(self._out_of_time or self._overtime())[0]
        if last:
            return "finished"
        if overtime:
            return "max-time"
        return "early stop" if patience and stale(self._accuracies) >= patience else ""

    def _overtime(self) -> bool:
        limit = self._settings.train.max_time
        return limit is not None and self._train_s() >= limit

    def _due(self) -> bool:
        return time.monotonic() - self._taken >= 60 * self._settings.run.checkpoint_minutes

    def _train_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._started

    def _take(self, trainer: Trainer, validate: bool = False) -> None:
        module = trainer.lightning_module
        assert isinstance(module, Classifier)
        module.check_finite(trainer.global_step)
        manifest = Manifest(
            step=trainer.global_step,
            epoch=trainer.current_epoch + validate,
            val_accuracy=None,
            val_loss=None,
            accuracies=list(self._accuracies),
            validate=validate,
            ended="",
            data_digest=self._images.cache.index.digest,
            split_digest=self._images.split_digest,
            train_s=self._train_s(),
            images_per_s=self._log.rate,
        )
        self._last = self._uploader.save(
            manifest,
            partial(training_state.write, training_state.gather(trainer)),
            deferred=training_state.is_deferred(trainer),
        )
        self._group.drain()  # or a checkpoint that was due would be taken twice
        self._taken = time.monotonic()
        self._log.pause()

    def _go_on_unless_stopped(self) -> None:
        if self._group.any_rank(self._stop())[0]:
            self._preempted()

    def _preempted(self) -> None:
        """Wait for the last checkpoint as long as the grace allows, and raise Preempted, which says what is stored."""
        assert self._last
        self._stop.set(OF_ANOTHER)
        if not self._group.is_main:
            raise Preempted("Stopped: rank 0 stores the checkpoint.")
        self._uploader.hurry(self._stop.seconds_to_store(self._settings.run.grace_seconds))
        stored, step, where = {each.step for each in self._checkpoints.stored}, self._last.step, self._checkpoints.uri
        if step in stored:
            raise Preempted(f"Stopped: step {step} is stored in {where}; run the same command again to continue.")
        at = f"only up to step {max(stored)}" if stored else "not at all yet"
        raise Preempted(f"Stopped: training is stored in {where} {at}; run the same command again to continue.")
