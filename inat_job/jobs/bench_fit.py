"""A run that is ready to train, as the bench takes it apart: everything in it is what the job itself uses."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inat_job.bench import batching, children, device, storing
from inat_job.bench.epochs import Between, Laps, Live
from inat_job.bench.measured import Measured
from inat_job.bench.request import Request
from inat_job.evaluation.predictions import Watch
from inat_job.jobs import folders, prepare, stages
from inat_job.jobs.clock import Clock
from inat_job.jobs.hold import hold
from inat_job.jobs.stages import Work
from inat_job.models.classifier import Classifier
from inat_job.models.count import count
from inat_job.models.strategies import Architecture, trainable_stages
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder
from inat_job.training import reuse
from inat_job.training.fit import fit, make_trainer
from inat_job.training.journal import NAME as METRICS
from inat_job.training.journal import Journal
from inat_job.training.keeper import Keeper
from inat_job.training.metrics_log import MetricsLog
from inat_job.training.uploader import Uploader, uploading

_FEW = 4
"""Optimiser steps that are trained where only the state after them is of interest."""


@dataclass(frozen=True)
class Ready:
    """A run before its first step, and what is asked of it; `plan` is what features it is trained on."""

    request: Request
    work: Work
    architecture: Architecture
    classifier: Classifier
    uploader: Uploader
    plan: reuse.Reuse | None

    def measure(self, others: Mapping[str, Between]) -> list[Measured]:
        """Everything that is measured in this process; `others` by turns with the epochs."""
        wanted, runs, work = self.request.stages, self.request.runs, self.work
        found: list[Measured] = []
        if "assembly" in wanted:
            children.say("assembly")
            found += batching.assembly(work.pictures, runs)
        children.say("epoch" if self.request.trains else "device")
        found += self._train(dict(others))
        if "test" in wanted:
            children.say("test")
            trainer = self._trainer([Watch(work.stop, "test")])
            found += batching.evaluation(trainer, self.classifier, work.pictures, runs)
        return found

    def _train(self, others: dict[str, Between]) -> list[Measured]:
        """Fit as the job does, but for validation, and take apart what is then on the device."""
        work, settings = self.work, self.work.settings
        pictures, found = work.pictures, list[Measured]()
        laps = Laps(pictures.slice_size, settings.train.accumulate, others)
        laps.at_end = lambda live: found.extend(self._taken_apart(live, laps))
        log = MetricsLog(Journal(work.folder, None), lambda values, step: None, pictures.slice_size)
        keeper = Keeper(settings, pictures, work.checkpoints, self.uploader, log, work.stop, None)
        trainer = self._trainer([log, keeper, laps])
        trainer.limit_val_batches = 0
        if not self.request.trains:
            trainer.limit_train_batches = min(_FEW * settings.train.accumulate, len(pictures.train_batches))
        fit(trainer, self.classifier, pictures, None)
        return found

    def _trainer(self, callbacks: list[Any]) -> Any:
        epochs = self.request.runs + 1 if self.request.trains else 1
        train = dataclasses.replace(self.work.settings.train, epochs=epochs)
        return make_trainer(self.work.execution, train, callbacks)

    def _taken_apart(self, live: Live, laps: Laps) -> list[Measured]:
        wanted, runs, work = self.request.stages, self.request.runs, self.work
        found: list[Measured] = []
        if "copy" in wanted and work.pictures.squares.device.type == "cpu":
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
            epoch_s = (
                len(work.pictures.train_batches) * work.pictures.slice_size / laps.epochs[-1] if laps.epochs else 0.0
            )
            found += storing.checkpoint(live, work.checkpoints, self.uploader, runs, epoch_s)
        return found

    def _macs(self) -> int | None:
        """Those of a picture, where all of the network trains from its pixels."""
        whole = trainable_stages(self.architecture, 0, self.work.settings.train.epochs) == len(self.architecture.stages)
        size = self.work.settings.data.image_size
        return count(self.architecture.network, size).macs if whole and self.plan is None else None

    def facts(self) -> dict[str, Any]:
        """What the figures are of."""
        settings, pictures = self.work.settings, self.work.pictures
        splits = {"train": pictures.train_rows, "val": pictures.val_rows, "test": pictures.test_rows}
        return {
            "part": settings.part,
            "model": self.architecture.name,
            "pictures": {name: len(rows) for name, rows in splits.items()},
            "image_size": settings.data.image_size,
            "batch_size": settings.train.batch_size,
            "runs": self.request.runs,
            "reuse": self.plan.as_dict() if self.plan else None,
            "execution": self.work.execution.as_dict(),
        }


@contextmanager
def ready(settings: Settings, request: Request, stop: StopFlag, started: float) -> Iterator[Ready]:
    """Prepare a run as the job does, in a folder of its own under --output, which is gone after the block."""
    folder = folders.run_folder(settings, settings.run_id, stop)
    try:
        with hold(folder, settings.run.lease_seconds, stop) as held:
            clock = Clock(started)
            work = stages.begin(settings, folder, prepare.pictures(settings, clock, stop), None, clock, stop)
            architecture, classifier = stages.network(work, pretrained=True)
            stages.reside(work)
            grace = settings.run.grace_seconds
            with uploading(work.checkpoints, held.lease, [METRICS], stop, grace, None) as uploader:
                plan = reuse.decide(architecture, classifier, settings, work.execution, work.pictures)
                if plan:
                    stages.features(work, classifier, plan)
                yield Ready(request, work, architecture, classifier, uploader, plan)
    finally:
        _remove(folder)


def _remove(folder: RunFolder) -> None:
    for entry in list(folder.store.list()):
        folder.store.delete(entry.key)
    shutil.rmtree(folder.local, ignore_errors=True)
