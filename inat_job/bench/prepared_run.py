"""A run that is ready to train, as the bench takes it apart: everything in it is what the job itself uses."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inat_job.bench import checkpoint, children, device
from inat_job.bench.epochs import Between, Laps, Live
from inat_job.bench.measurement import Measured
from inat_job.checkpoints.uploader import Uploader, uploading
from inat_job.command_options import BenchOptions
from inat_job.distributed.ranks import SINGLE_RANK
from inat_job.evaluation.predictions import EvaluationProgress
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
from inat_job.training.metrics_log import NAME as METRICS
from inat_job.training.metrics_log import MetricsFile, MetricsLog
from inat_job.training.trainer import fit, make_trainer

_FEW = 4
"""Optimiser steps that are trained where only the state after them is of interest."""


@dataclass(frozen=True)
class Ready:
    """A run before its first step, and what is asked of it; `plan` is what features it is trained on."""

    request: BenchOptions
    work: RunContext
    architecture: Architecture
    classifier: Classifier
    uploader: Uploader
    plan: feature_cache.FeaturePlan | None

    def measure(self, others: Mapping[str, Between]) -> list[Measured]:
        """Everything that is measured in this process; `others` by turns with the epochs."""
        wanted, runs, work = self.request.stages, self.request.runs, self.work
        found: list[Measured] = []
        if "assembly" in wanted:
            children.say("assembly")
            found += device.assembly(work.images, runs)
        children.say("epoch" if self.request.trains else "device")
        found += self._train(dict(others))
        if "test" in wanted:
            children.say("test")
            trainer = self._trainer([EvaluationProgress(work.stop, "test")])
            found += device.evaluation(trainer, self.classifier, work.images, runs)
        return found

    def _train(self, others: dict[str, Between]) -> list[Measured]:
        """Fit as the job does, but for validation, and take apart what is then on the device."""
        work, settings = self.work, self.work.settings
        images, found = work.images, list[Measured]()
        laps = Laps(images.slice_size, settings.train.accumulate, others)
        laps.at_end = lambda live: found.extend(self._taken_apart(live, laps))
        log = MetricsLog(MetricsFile(work.folder, None), lambda values, step: None, images.slice_size)
        checkpoint_callback = CheckpointCallback(work, self.uploader, log, None)
        trainer = self._trainer([log, checkpoint_callback, laps])
        trainer.limit_val_batches = 0
        if not self.request.trains:
            trainer.limit_train_batches = min(_FEW * settings.train.accumulate, len(images.train_batches))
        fit(trainer, self.classifier, images, None)
        return found

    def _trainer(self, callbacks: list[Any]) -> Any:
        epochs = self.request.runs + 1 if self.request.trains else 1
        train = dataclasses.replace(self.work.settings.train, epochs=epochs)
        return make_trainer(self.work.execution, train, callbacks)

    def _taken_apart(self, live: Live, laps: Laps) -> list[Measured]:
        wanted, runs, work = self.request.stages, self.request.runs, self.work
        found: list[Measured] = []
        if "copy" in wanted and work.images.pixel_rows.device.type == "cpu":
            found += device.copy(live, runs)
        if "augmentation" in wanted:
            found += device.augmentation(live, runs)
        if "forward" in wanted:
            found += device.forward(live, runs)
        found += laps.measured()
        if "matrix" in wanted:
            trained = tuple(laps.epochs or laps.free)
            found += device.utilisation(live, runs, self._macs(), work.execution.device, trained)
        if "checkpoint" in wanted:
            children.say("checkpoint")
            epoch_s = len(work.images.train_batches) * work.images.slice_size / laps.epochs[-1] if laps.epochs else 0.0
            found += checkpoint.checkpoint(live, work.checkpoints, self.uploader, runs, epoch_s)
        return found

    def _macs(self) -> int | None:
        """Those of a image, where all of the network trains from its pixels."""
        whole = trainable_stages(self.architecture, 0, self.work.settings.train.epochs) == len(self.architecture.stages)
        size = self.work.settings.data.image_size
        return network_size(self.architecture.network, size).macs if whole and self.plan is None else None

    def facts(self) -> dict[str, Any]:
        """What the figures are of."""
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
def ready(settings: Settings, request: BenchOptions, stop: StopFlag, started: float) -> Iterator[Ready]:
    """Prepare a run as the job does, in a folder of its own under --output, which is gone after the block."""
    folder = open_run(settings, settings.run_id, stop)
    try:
        with lease_run(folder, settings.run.lease_seconds, stop) as leased:
            job = Job(settings, folder, SINGLE_RANK, Clock(started), stop)
            work = RunContext.create(job, prepare_images(settings, job.clock, stop))
            architecture, classifier = work.build_network(pretrained=True)
            work.move_images_to_gpu()
            grace = settings.run.grace_seconds
            with uploading(work.checkpoints, leased.lease, [METRICS], stop, grace, None) as uploader:
                plan = feature_cache.decide(work, architecture, classifier)
                if plan:
                    feature_cache.prepare(work, classifier, plan)
                yield Ready(request, work, architecture, classifier, uploader, plan)
    finally:
        _remove(folder)


def _remove(folder: RunFolder) -> None:
    for entry in list(folder.store.list()):
        folder.store.delete(entry.key)
    shutil.rmtree(folder.local, ignore_errors=True)
