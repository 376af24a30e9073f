"""A run prepared for the bench: the network, images and uploader that a job would train with, up to its first step."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inat_job import events
from inat_job.bench import training_stages
from inat_job.bench.measurement import Measurement
from inat_job.bench.training_stages import EpochTimer, LiveTraining, TrainEpoch
from inat_job.checkpoints.uploader import Uploader, uploading
from inat_job.command_options import BenchOptions
from inat_job.distributed.ranks import SINGLE_RANK
from inat_job.evaluation.predictions import EvaluationProgress
from inat_job.host.device_faults import device_errors
from inat_job.models.classifier import Classifier
from inat_job.models.flops import network_size
from inat_job.models.strategies import Architecture, trainable_stages
from inat_job.run.job import Job
from inat_job.run.prepare_images import prepare_images
from inat_job.run.run_state import lease_run, open_run
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder
from inat_job.training import feature_cache
from inat_job.training.checkpoint_callback import CheckpointCallback
from inat_job.training.context import RunContext
from inat_job.training.execution import compile_in_place
from inat_job.training.metrics_log import NAME as METRICS
from inat_job.training.metrics_log import MetricsFile, MetricsLog
from inat_job.training.trainer import fit_errors, make_trainer

_FEW_STEPS = 4
"""Optimiser steps that are trained when only the state after them is measured."""


@dataclass(frozen=True)
class PreparedRun:
    """A run before its first step, and the stages to measure; `plan` is the cached features it trains on, if any."""

    request: BenchOptions
    work: RunContext
    architecture: Architecture
    classifier: Classifier
    uploader: Uploader
    plan: feature_cache.FeaturePlan | None

    def measure(self, others: Mapping[str, TrainEpoch]) -> list[Measurement]:
        """All stages that are measured in this process; `others` are trained alternately with the epochs."""
        stages, runs, work = self.request.stages, self.request.runs, self.work
        found: list[Measurement] = []
        if "assembly" in stages:
            events.emit("bench", stage="assembly")
            found += training_stages.assembly(work.images, runs)
        events.emit("bench", stage="epoch" if self.request.trains else "device")
        found += self._train(dict(others))
        if "test" in stages:
            events.emit("bench", stage="test")
            trainer = self._trainer([EvaluationProgress(work.stop, "test")])
            found += training_stages.evaluation(trainer, self.classifier, work.images, runs)
        return found

    def _train(self, others: dict[str, TrainEpoch]) -> list[Measurement]:
        """Fit as the job does, but without validation, and measure the stages on the device at its end."""
        work, settings = self.work, self.work.settings
        images, found = work.images, list[Measurement]()
        timer = EpochTimer(images.slice_size, settings.train.accumulate, others)
        timer.at_end = lambda live: found.extend(self._measure_stages(live, timer))
        log = MetricsLog(MetricsFile(work.folder, None), lambda values, step: None, images.slice_size)
        checkpoint_callback = CheckpointCallback(work, self.uploader, log, None)
        trainer = self._trainer([log, checkpoint_callback, timer])
        trainer.limit_val_batches = 0
        if not self.request.trains:
            trainer.limit_train_batches = min(_FEW_STEPS * settings.train.accumulate, len(images.train_batches))
        with fit_errors(trainer, None):
            trainer.fit(self.classifier, datamodule=images)
        return found

    def _trainer(self, callbacks: list[Any]) -> Any:
        epochs = self.request.runs + 1 if self.request.trains else 1
        train = dataclasses.replace(self.work.settings.train, epochs=epochs)
        return make_trainer(self.work.execution, train, callbacks)

    def _measure_stages(self, live: LiveTraining, timer: EpochTimer) -> list[Measurement]:
        stages, runs, work = self.request.stages, self.request.runs, self.work
        found: list[Measurement] = []
        if "copy" in stages and not work.images.pixel_rows.resident:
            found += training_stages.copy(live, runs)
        if "augmentation" in stages:
            found += training_stages.augmentation(live, runs)
        if "forward" in stages:
            found += training_stages.forward(live, runs)
        found += timer.measurements()
        if "matrix" in stages:
            trained = tuple(timer.epoch_rates or timer.step_rates)
            found += training_stages.utilisation(live, runs, self._macs(), work.execution.device, trained)
        if "checkpoint" in stages:
            events.emit("bench", stage="checkpoint")
            epoch_images = len(work.images.train_batches) * work.images.slice_size
            epoch_s = epoch_images / timer.epoch_rates[-1] if timer.epoch_rates else 0.0
            found += training_stages.checkpoint(live, work.checkpoints, self.uploader, runs, epoch_s)
        return found

    def _macs(self) -> int | None:
        """Multiply-adds of one image, or None unless the whole network trains from pixels."""
        n_trainable = trainable_stages(self.architecture, 0, self.work.settings.train.epochs)
        if n_trainable < len(self.architecture.stages) or self.plan is not None:
            return None
        return network_size(self.architecture.network, self.work.settings.data.image_size).macs

    def facts(self) -> dict[str, Any]:
        """What was measured: part, network, images, batch size, arithmetic."""
        settings, images = self.work.settings, self.work.images
        splits = {"train": images.train_rows, "val": images.val_rows, "test": images.test_rows}
        return {
            "part": settings.part,
            "model": self.architecture.name,
            "images": {name: len(rows) for name, rows in splits.items()},
            "image_size": settings.data.image_size,
            "batch_size": settings.train.batch_size,
            "runs": self.request.runs,
            "reuse": self.plan.as_dict() if self.plan else None,
            "execution": self.work.execution.as_dict(),
        }


@contextmanager
def prepare_run(settings: Settings, request: BenchOptions, stop: StopFlag, started: float) -> Iterator[PreparedRun]:
    """Prepare a run as the job does, in its own folder under --output, which is deleted after the block."""
    folder = open_run(settings, settings.run_id, stop)
    try:
        with lease_run(folder, settings.run.lease_seconds, stop) as leased, device_errors():
            job = Job(settings, folder, SINGLE_RANK, Clock(started), stop)
            work = RunContext.create(job, prepare_images(settings, job.clock, stop))
            architecture, classifier = work.build_network(pretrained=True)
            work.move_images_to_gpu()
            if work.execution.compile:
                compile_in_place(architecture.network, work.execution.compile_mode)
            grace = settings.run.grace_seconds
            with uploading(work.checkpoints, leased.lease, [METRICS], stop, grace, None) as uploader, device_errors():
                plan = feature_cache.decide(work, architecture, classifier)
                if plan:
                    feature_cache.prepare(work, classifier, plan)
                yield PreparedRun(request, work, architecture, classifier, uploader, plan)
    finally:
        _delete(folder)


def _delete(folder: RunFolder) -> None:
    for entry in list(folder.store.list()):
        folder.store.delete(entry.key)
    shutil.rmtree(folder.local, ignore_errors=True)
