"""Lets a frozen stem work once for each view of a image, and not once in each epoch: the head then trains in seconds.

What is reused is decided once, at a run's first start, and stored with it, since the views of its epochs depend on it.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer

from inat_job import events
from inat_job.data.batches import Batch, EvalBatches
from inat_job.data.features import FeatureFile, Features, FeatureWriter
from inat_job.data.module import ImageDataModule
from inat_job.models.classifier import Classifier
from inat_job.models.flops import MACS_PER_S, count
from inat_job.models.frozen_stem import Indivisible, digest
from inat_job.models.strategies import Architecture, epochs_alike
from inat_job.settings import Settings
from inat_job.signals import Stop
from inat_job.storage.cache_locks import cache_errors, hold_folder, lock
from inat_job.training.execution import Execution

READ_BYTES_PER_S = 1e9
"""What a batch of features is read at, from a disk of a cloud machine or the system's memory of it."""

_DISK_SHARE = 0.5
"""Of the free disk, what features may take."""


@dataclass(frozen=True)
class FeaturePlan:
    """The first `epochs` epochs see `views` views by turns, whose features at `at` are kept."""

    views: int
    epochs: int
    at: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def pays(bytes_per_image: int, macs_per_image: int, accelerator: str) -> bool:
    """Whether to read a image's features is quicker than to compute them."""
    return bytes_per_image / READ_BYTES_PER_S < macs_per_image / MACS_PER_S[accelerator]


def decide(
    architecture: Architecture,
    classifier: Classifier,
    settings: Settings,
    execution: Execution,
    images: ImageDataModule,
) -> FeaturePlan | None:
    """What a new run reuses; if nothing though its stem is frozen, the log says why."""
    epochs = epochs_alike(architecture, settings.train.epochs)
    views = min(architecture.feature_views, 1) if not settings.train.augment else architecture.feature_views
    if architecture.strategy == "full" or views == 0:
        return None
    try:
        if epochs <= views:
            raise Indivisible(f"only {epochs} epochs train the same stages, and there would be {views} views")
        cut = classifier.split()
        _check_worth(cut.stem, settings, execution, views * len(images.train_rows) + len(images.val_rows))
    except Indivisible as reason:
        events.emit("reuse", message=f"No features are reused: {reason}.")
        return None
    return FeaturePlan(views, epochs, cut.at)


def _check_worth(stem: torch.nn.Module, settings: Settings, execution: Execution, images: int) -> None:
    """Raise Indivisible with the reason not to keep features of so many images."""
    counts = count(stem, settings.data.image_size)
    # Not less than what the arithmetic gives: mixed precision ends in some layers in four bytes.
    per_image = 4 * counts.outputs
    if not pays(per_image, counts.macs, execution.accelerator):
        raise Indivisible(f"to read {per_image:,} bytes a image takes longer than to compute them")
    free = shutil.disk_usage(_existing(Path(settings.data.cache_dir))).free
    if per_image * images > _DISK_SHARE * free:
        raise Indivisible(
            f"they need {per_image * images / 1e6:,.0f} MB, and --cache-dir has {free / 1e6:,.0f} MB free"
        )


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)


class Stem(LightningModule):
    """Writes the features of every image that it is given."""

    def __init__(self, classifier: Classifier, writer: FeatureWriter) -> None:
        super().__init__()
        self.classifier = classifier
        self._writer = writer

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        self._writer.add(self.classifier.split().stem(self.classifier.view(batch)))


@dataclass(frozen=True)
class FeatureInputs:
    """What computing features needs."""

    settings: Settings
    execution: Execution
    images: ImageDataModule
    classifier: Classifier
    trainer: Trainer
    stop: Stop


def prepare(needs: FeatureInputs, plan: FeaturePlan) -> dict[str, Any]:
    """Have the features of a run at hand, computed where they are not, and let its images give them.

    Returns the report's section. Raises ConflictError for a cache folder that takes none, Preempted: parts that are
    complete are found there the next time.
    """
    images, cache_dir = needs.images, Path(needs.settings.data.cache_dir)
    labels = np.array(images.cache.index.labels)
    folder = cache_dir / "features" / _key(needs)
    features = Features(folder, labels, images.train_rows, images.val_rows, plan.views)
    parts: list[tuple[FeatureFile, int | None]] = [(part, view) for view, part in features.views.items()]
    begun, computed = time.perf_counter(), 0
    with lock(folder.with_suffix(".lock"), cache_dir, needs.stop, "waiting for another job that computes the features"):
        for part, view in [*parts, (features.val, None)]:
            if not part.load():
                _compute(needs, part, view, cache_dir)
                computed += len(part.rows)
        features.held = hold_folder(folder)
    images.use_features(features, plan.epochs)
    size = sum(part.nbytes for part, _ in parts) + features.val.nbytes
    said = {**plan.as_dict(), "computed": computed, "bytes": size, "seconds": round(time.perf_counter() - begun, 3)}
    events.emit("reuse", **said)
    return said


def _compute(needs: FeatureInputs, part: FeatureFile, view: int | None, cache_dir: Path) -> None:
    batches: EvalBatches = needs.images.unsharded_batches(part.rows, view)
    with cache_errors(cache_dir), part.writer() as writer:
        needs.trainer.predict(Stem(needs.classifier, writer), dataloaders=batches, return_predictions=False)
    assert part.load()


def _key(needs: FeatureInputs) -> str:
    """SHA-256 of all that decides the features: the images, what is cut out of them, the stem and its arithmetic."""
    index, data, train = needs.images.cache.index, needs.settings.data, needs.settings.train
    augmentation = (train.augment, train.seed, train.crop_scale, train.rotation, train.colour)
    decides: Mapping[str, Any] = {
        "pixels": index.pixels_sha256,
        "split": needs.images.split_digest,
        "view": [data.image_size, data.eval_crop, *augmentation],
        "stem": digest(needs.classifier.split().stem),
        "execution": needs.execution.as_dict(),
        "batch": train.batch_size,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]
