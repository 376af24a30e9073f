"""When a checkpoint is taken, what it holds, and what ends training: the stop flag, `--max-time`, `--early-stop`.

An epoch's checkpoint is taken before its validation, and the result is added to the manifest afterwards. So a job that
is stopped while it validates loses nothing: the next attempt validates first. With `--final` there is no validation.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from inat_job import events
from inat_job.checkpoints import training_state
from inat_job.checkpoints.manifest import Manifest, epochs_since_best
from inat_job.checkpoints.state_buffer import StateBuffer
from inat_job.checkpoints.uploader import NullUploader, Uploader
from inat_job.data.rng import step_seed
from inat_job.distributed.process_group import STOPPED_BY_ANOTHER_RANK
from inat_job.errors import Preempted
from inat_job.job_status import STATUS
from inat_job.models.classifier import Classifier
from inat_job.training import time_limit
from inat_job.training.context import RunContext
from inat_job.training.metrics_log import MetricsLog
from inat_job.training.time_limit import PaceMeter


class CheckpointCallback(Callback):
    """Seeds each step, takes checkpoints, and ends training.

    `ended` is the reason why training is over ("finished", "early stop", "max-time"), and empty until then.
    """

    def __init__(
        self, context: RunContext, uploader: Uploader | NullUploader, log: MetricsLog, resumed: Manifest | None
    ) -> None:
        self._settings, self._epochs = context.settings, context.train.epochs
        self._images, self._group = context.images, context.group
        self._checkpoints, self._stop, self._trial = context.checkpoints, context.stop, context.trial
        self._uploader, self._log, self._buffer = uploader, log, StateBuffer()
        self._last = resumed
        self._accuracies = list(resumed.accuracies) if resumed else []
        self._earlier_s = resumed.train_s if resumed else 0.0
        self._started = self._last_taken = time_limit.clock()
        self._meter = PaceMeter()
        self._out_of_time = False
        self.ended = resumed.ended if resumed else ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A head that was solved for is worth a checkpoint before the first step; it was validated already."""
        assert isinstance(pl_module, Classifier)
        if self._last is None and math.isfinite(pl_module.val_accuracy):
            self._take(trainer, val_accuracy=pl_module.val_accuracy, val_loss=pl_module.val_loss)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        torch.manual_seed(step_seed(self._settings.train.seed, step, trainer.global_rank))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches:
            return  # no optimiser step is complete here
        self._meter.end_step()
        if done == trainer.num_training_batches:
            return  # the epoch's last step is saved as it ends
        assert isinstance(pl_module, Classifier)
        if time_limit.is_moment(trainer.global_step):
            self._plan_end(pl_module, trainer.global_step)
        self._uploader.raise_if_failed()
        stop, overtime, due = self._group.any_rank_delayed(self._stop(), self._is_overtime(), self._is_due())
        if stop:
            self._take(trainer)
            self._preempt()
        if overtime or (pl_module.schedule.cuts and trainer.global_step >= pl_module.schedule.end):
            self._out_of_time = trainer.should_stop = True
        elif due:
            self._take(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take(trainer, ends_epoch=True)
        self._preempt_if_stopped()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._settings.train.final:
            return  # on_validation_end has done this
        assert isinstance(pl_module, Classifier)
        self._log.end_epoch(trainer.global_step, trainer.current_epoch)
        self._end_epoch(pl_module, trainer.global_step, trainer.current_epoch + 1)
        self._take(trainer, ends_epoch=True)
        trainer.should_stop = bool(self.ended)
        if not self.ended:
            self._preempt_if_stopped()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._group.any_rank_delayed(self._stop(), False, False)[0]:
            self._preempt()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.add_validation(pl_module)
        trainer.should_stop = bool(self.ended)
        if not self.ended:
            self._preempt_if_stopped()

    def add_validation(self, classifier: Classifier) -> None:
        """Add the validation's result to the last checkpoint, and decide whether training ends with it."""
        assert self._last
        self._accuracies.append(classifier.val_accuracy)
        self._end_epoch(classifier, self._last.step, self._last.epoch)
        self._last = replace(
            self._last,
            val_accuracy=classifier.val_accuracy,
            val_loss=classifier.val_loss,
            accuracies=list(self._accuracies),
            validate=False,
            ended=self.ended,
            train_s=self._train_s(),
            cuts=_cuts(classifier),
        )
        self._uploader.update_manifest(self._last)
        self.report_to_sweep()

    def report_to_sweep(self) -> None:
        """In a trial of a sweep, report the epochs so far; the answer may set the stop flag."""
        if self._trial and self._accuracies:
            self._trial.report(self._accuracies, last=bool(self.ended))

    def _end_epoch(self, classifier: Classifier, step: int, epoch: int) -> None:
        """After `epoch` epochs: decide whether training ends, or else after how many steps it will."""
        self._meter.end_epoch()
        self.ended = self._why_ended(step >= classifier.schedule.total, epoch == self._epochs)
        if not self.ended:
            self._plan_end(classifier, step)
            self.ended = "max-time" if step >= classifier.schedule.end else ""

    def _why_ended(self, is_complete: bool, is_last_epoch: bool) -> str:
        """`is_complete` is whether the run has all its steps: a last epoch may have been cut short."""
        patience = self._settings.train.early_stop
        overtime = self._group.any_rank(self._out_of_time or self._is_overtime())[0]
        if is_complete:
            return "finished"
        if overtime or is_last_epoch:
            return "max-time"
        return "early stop" if patience and epochs_since_best(self._accuracies) >= patience else ""

    def _plan_end(self, classifier: Classifier, step: int) -> None:
        """With `--max-time`, let training end after the steps that fit, as rank 0 measures them."""
        limit_s, schedule, per_epoch = self._settings.train.max_time, classifier.schedule, self._images.steps_per_epoch
        if limit_s is None:
            return
        used_s = self._train_s()
        pace = self._meter.pace(used_s, step)
        fits = time_limit.end_that_fits(step, schedule.end, schedule.total, per_epoch, used_s, limit_s, pace)
        classifier.schedule = schedule.ending_at(int(self._group.broadcast(fits)), decided=step)
        epochs = math.ceil(classifier.schedule.end / per_epoch)
        if epochs != STATUS.epochs:
            STATUS.epochs = epochs
            events.emit("time-limit", epochs=epochs, steps=classifier.schedule.end, of=schedule.total)

    def _is_overtime(self) -> bool:
        limit = self._settings.train.max_time
        return limit is not None and self._train_s() >= limit

    def _is_due(self) -> bool:
        return time_limit.clock() - self._last_taken >= 60 * self._settings.run.checkpoint_minutes

    def _train_s(self) -> float:
        return self._earlier_s + time_limit.clock() - self._started

    def _take(
        self,
        trainer: Trainer,
        ends_epoch: bool = False,
        val_accuracy: float | None = None,
        val_loss: float | None = None,
    ) -> None:
        module = trainer.lightning_module
        assert isinstance(module, Classifier)
        self._log.flush()
        module.check_finite(trainer.global_step, bool(module.finite))
        manifest = Manifest(
            step=trainer.global_step,
            epoch=trainer.current_epoch + ends_epoch,
            val_accuracy=val_accuracy,
            val_loss=val_loss,
            accuracies=list(self._accuracies),
            validate=ends_epoch and not self._settings.train.final,
            ended=self.ended,
            data_digest=self._images.cache.index.digest,
            split_digest=self._images.split_digest,
            train_s=self._train_s(),
            images_per_s=self._log.rate,
            cuts=_cuts(module),
        )
        self._uploader.save(manifest, partial(self._buffer.copy, training_state.collect(trainer)))
        self._last = manifest
        self._group.drop_pending()  # or a checkpoint that was due would be taken twice
        self._last_taken = time_limit.clock()
        self._log.pause()

    def _preempt_if_stopped(self) -> None:
        if self._group.any_rank(self._stop())[0]:
            self._preempt()

    def _preempt(self) -> None:
        """Wait for the last checkpoint as long as the grace allows, and raise Preempted, which says what is stored."""
        assert self._last
        self._stop.set(STOPPED_BY_ANOTHER_RANK)
        if not self._group.is_main:
            raise Preempted("Stopped: rank 0 stores the checkpoint.")
        self._uploader.flush(self._stop.seconds_to_store(self._settings.run.grace_seconds))
        self._uploader.raise_if_failed()
        stored, step, where = {each.step for each in self._checkpoints.stored}, self._last.step, self._checkpoints.uri
        if step in stored:
            raise Preempted(f"Stopped: step {step} is stored in {where}; run the same command again to continue.")
        at = f"only up to step {max(stored)}" if stored else "not at all yet"
        raise Preempted(f"Stopped: training is stored in {where} {at}; run the same command again to continue.")


def _cuts(classifier: Classifier) -> list[list[int]]:
    return [list(cut) for cut in classifier.schedule.cuts]
