"""The feature cache: a frozen stem runs once per view of an image, not once per epoch, so a head trains in seconds.

What is cached is planned once, when a run first starts, and stored with the run, since it decides the views of the
epochs.
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
from lightning import LightningModule

from inat_job import events
from inat_job.data import augment
from inat_job.data.batches import IGNORED, Batch
from inat_job.data.features import FeatureFile, Features, FeatureWriter
from inat_job.evaluation.predictions import EvaluationProgress
from inat_job.models.classifier import Classifier
from inat_job.models.flops import MACS_PER_S, network_size
from inat_job.models.frozen_stem import CannotCutError, stem_digest
from inat_job.models.strategies import Architecture, epochs_with_initial_stages
from inat_job.storage.cache_locks import cache_errors, hold_folder, lock
from inat_job.storage.disk import megabytes
from inat_job.training.context import RunContext
from inat_job.training.trainer import make_trainer

READ_BYTES_PER_S = 1e9
"""How fast a batch of features is read, from a cloud machine's disk or its page cache."""

_DISK_SHARE = 0.5
"""The share of the free disk that features may take."""


@dataclass(frozen=True)
class FeaturePlan:
    """The first `epochs` epochs train on the cached features of `views` views in turn, taken behind the layer `at`."""

    views: int
    epochs: int
    at: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def pays(bytes_per_image: int, macs_per_image: int, accelerator: str) -> bool:
    """Whether reading an image's features is faster than computing them."""
    return bytes_per_image / READ_BYTES_PER_S < macs_per_image / MACS_PER_S[accelerator]


def decide(context: RunContext, architecture: Architecture, classifier: Classifier) -> FeaturePlan | None:
    """The plan of a new run. Where nothing is cached although the stem is frozen, the log says why."""
    train = context.train
    epochs = epochs_with_initial_stages(architecture, train.epochs)
    views = architecture.feature_views if train.augment else min(architecture.feature_views, 1)
    if architecture.strategy in ("full", "lp-ft") or views == 0:
        return None
    try:
        if epochs <= views:
            raise CannotCutError(f"only {epochs} epochs train the same stages, and there would be {views} views")
        size = context.settings.data.image_size
        changing = {
            "--mixup": train.mixes and train.mixup,
            "--cutmix": train.mixes and train.cutmix,
            "--start-size": (train.start_size or size) < size,
        }
        if flags := [flag for flag, is_on in changing.items() if is_on]:
            raise CannotCutError(f"the views of an image change with {' and '.join(flags)}")
        cut = classifier.stem_and_tail()
        _check_worth(context, cut.stem, views)
    except CannotCutError as reason:
        events.emit("reuse", message=f"No features are cached: {reason}.")
        return None
    return FeaturePlan(views, epochs, cut.cut_at)


def prepare(context: RunContext, classifier: Classifier, plan: FeaturePlan) -> dict[str, Any]:
    """Compute the features that are not in the cache yet, and let the images' batches come from them.

    Returns the report's section. Raises ConflictError for a cache folder that cannot be written, and Preempted; parts
    that are complete are found there the next time.
    """
    began = time.perf_counter()
    features, computed = compute(context, classifier, plan.views)
    context.place("features", features)
    context.images.use_features(features, plan.epochs)
    seconds = round(time.perf_counter() - began, 3)
    section = {**plan.as_dict(), "computed": computed, "bytes": features.nbytes, "seconds": seconds}
    events.emit("reuse", **section)
    return section


def compute(
    context: RunContext,
    classifier: Classifier,
    views: int,
    n_trainable_stages: int | None = None,
    with_plain: bool = False,
) -> tuple[Features, int]:
    """The features of the training images in `views` views, if `with_plain` also as evaluated, and of the validation.

    What the cache lacks is computed; the number of these rows is returned too. The stem is cut as in
    `Classifier.stem_and_tail`.
    """
    events.phase("features")
    trainer = make_trainer(context.execution, context.settings.train, [EvaluationProgress(context.stop, "features")])
    images, cache_dir = context.images, Path(context.settings.data.cache_dir)
    labels = np.array(images.cache.index.labels)
    folder = cache_dir / "features" / cache_key(context, classifier, n_trainable_stages)
    features = Features(folder, labels, images.train_rows, images.val_rows, views, with_plain)
    parts: list[tuple[FeatureFile, int | None]] = [(part, view) for view, part in features.views.items()]
    parts += [(part, None) for part in (features.plain, features.val) if part]
    computed = 0
    waiting = "waiting for another job that computes the features"
    with lock(folder.with_suffix(".lock"), cache_dir, context.stop, waiting):
        for part, view in parts:
            if not part.load():
                batches = images.unsharded_batches(part.rows, view)
                with cache_errors(cache_dir), part.writer() as writer:
                    stem = StemPass(classifier, writer, n_trainable_stages)
                    trainer.predict(stem, dataloaders=batches, return_predictions=False)
                assert part.load()
                computed += len(part.rows)
        features.held = hold_folder(folder)
    return features, computed


def cache_key(context: RunContext, classifier: Classifier, n_trainable_stages: int | None = None) -> str:
    """SHA-256 over everything that decides the features: images, views, the stem, and its arithmetic.

    A view is decided by the whole augmentation, its random draws, and the code that cuts it (`augment.VIEW_FORMAT`).
    """
    index, data, train = context.images.cache.index, context.settings.data, context.settings.train
    view: Mapping[str, Any] = {
        "format": augment.VIEW_FORMAT,
        "image_size": data.image_size,
        "eval_size": data.eval_size,
        "eval_crop": data.eval_crop,
        "augment": train.augment,
        "augmentation": dataclasses.asdict(context.images.augmentation),
        "seed": train.seed,
    }
    decides: Mapping[str, Any] = {
        "pixels": index.pixels_sha256,
        "split": context.images.split_digest,
        "view": view,
        "stem": stem_digest(classifier.stem_and_tail(n_trainable_stages).stem),
        "execution": context.execution.as_dict(),
        "batch": train.batch_size,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]


class StemPass(LightningModule):
    """Runs the stem over images and writes their features."""

    def __init__(self, classifier: Classifier, writer: FeatureWriter, n_trainable_stages: int | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self._writer, self._n_trainable_stages = writer, n_trainable_stages

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        features = self.classifier.stem_and_tail(self._n_trainable_stages).stem(self.classifier.view(batch))
        self._writer.add(features[batch.labels != IGNORED])


def _check_worth(context: RunContext, stem: torch.nn.Module, views: int) -> None:
    """Raise CannotCutError with the reason not to cache the features of so many training views."""
    data, images = context.settings.data, context.images
    counts, evaluated = network_size(stem, data.image_size), network_size(stem, data.eval_size)
    per_image = 4 * counts.outputs  # at most: in mixed precision, some layers still put out four bytes
    if not pays(per_image, counts.macs, context.execution.accelerator):
        raise CannotCutError(f"reading {per_image:,} bytes per image takes longer than computing them")
    needed = per_image * views * len(images.train_rows) + 4 * evaluated.outputs * len(images.val_rows)
    free = shutil.disk_usage(_existing(Path(data.cache_dir))).free
    if needed > _DISK_SHARE * free:
        raise CannotCutError(f"they need {megabytes(needed)}, and --cache-dir has {megabytes(free)} free")


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)
