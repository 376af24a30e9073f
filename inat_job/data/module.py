"""The LightningDataModule: the cache, its train, validation and test splits, and their batches."""

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch
from lightning import LightningDataModule

from inat_job.data import layout, splits
from inat_job.data.augment import Augmentation, Views, centre_maps, mirrored, training_views, view_size
from inat_job.data.batches import UNSHARDED, Batch, EvalBatches, PixelRows, Shard, TakeBatch, TrainBatches
from inat_job.data.cache_index import Cache
from inat_job.data.features import Features
from inat_job.data.imbalance import balanced_weights, earlier_times
from inat_job.data.mixing import draw_mix
from inat_job.errors import BadDataError, ConflictError
from inat_job.settings import DataSettings, TrainSettings

_AGAIN = 2**20 + 1
"""From the number of an image's view to that of its next one in the same epoch: more than there are epochs, and odd."""


class ImageDataModule(LightningDataModule):
    """Train, validation and test batches of a cache, or of features computed from it.

    `shard` is the rank's share of each batch. With `on_gpu`, all batches of an evaluation have one shape, since a GPU
    prepares the kernels of each shape again; a CPU would compute the padding for nothing. With `--final` no image is
    held out. Raises BadDataError if no image is left for validation, ConflictError for a batch larger than the training
    set, and for --val-share where the data set has validation images of its own.
    """

    def __init__(
        self,
        cache: Cache,
        train: TrainSettings,
        data: DataSettings,
        shard: Shard = UNSHARDED,
        on_gpu: bool = False,
    ) -> None:
        super().__init__()
        self.cache, self._shard, self._on_gpu = cache, shard, on_gpu
        self._features: Features | None = None
        self._feature_epochs = 0
        self._end_at: Callable[[int], int] = lambda _: train.epochs * self.steps_per_epoch
        self._settings, self._data = train, data
        self.augmentation = Augmentation(
            train.crop_scale, train.rotation, train.colour, train.flip, train.trivial_augment, train.erase
        )
        self._sizes = torch.tensor(cache.index.sizes)
        self._centre_maps = centre_maps(self._sizes, data.eval_crop)
        own = cache.index.rows(layout.VALIDATION)
        rows = np.union1d(cache.index.rows(layout.TRAIN), own)
        hashes = [cache.index.hashes[row] for row in rows]
        self.val_share = self._val_share(len(own))
        if self.val_share is None:
            chosen = np.isin(rows, own).tolist()
        else:
            labels = [cache.index.labels[row] for row in rows]
            chosen = splits.validation(hashes, labels, train.seed, self.val_share)
        held_out = [False] * len(rows) if train.final else chosen
        self.split_digest = splits.digest(hashes, held_out)
        self.train_rows: np.ndarray = rows[~np.array(held_out)]
        self.val_rows: np.ndarray = rows[np.array(held_out)]
        self.held_out_rows: np.ndarray = rows[np.array(chosen)]  # whether or not this run is final
        self.test_rows: np.ndarray = cache.index.rows(layout.TEST)
        if len(self.val_rows) == 0 and not train.final:
            raise BadDataError(
                f"{cache.index.source} leaves no image for validation, because no class has two different images in "
                "train: add some, or train with --final, which needs none."
            )
        splits.check_batch_size(train.batch_size, len(self.train_rows))

    def _val_share(self, own: int) -> float | None:
        """The share of the training images that is held out for validation; None if the data set has its `own`."""
        share = self._data.val_share
        if own and share is not None:
            raise ConflictError(
                f"--val-share is {share:g}, but {self.cache.index.source} has {own} validation images of its own: "
                "leave it out, or if it is that of a run to test, use --val-share none."
            )
        return None if own else splits.VALIDATION_SHARE if share is None else share

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.train_rows) // self._settings.batch_size

    @property
    def images_per_epoch(self) -> int:
        """Training images in an epoch, which are those of its full batches."""
        return self.steps_per_epoch * self._settings.batch_size

    @property
    def slice_size(self) -> int:
        """Images, of all ranks together, in one forward pass: a batch, or a slice of it with gradient accumulation."""
        return self._settings.batch_size // self._settings.accumulate

    @property
    def dropped_per_epoch(self) -> int:
        """Training images that an epoch leaves out, different ones each time, because its last batch is partial."""
        return len(self.train_rows) % self._settings.batch_size

    @property
    def train_counts(self) -> np.ndarray:
        """The training images of each class, int64 (classes,)."""
        return np.bincount(self._train_labels, minlength=len(self.cache.index.classes))

    @property
    def class_weights(self) -> np.ndarray | None:
        """The weights of the classes in the training loss, float64 (classes,); None if they are all 1."""
        return balanced_weights(self.train_counts) if self._settings.class_weights == "balanced" else None

    @property
    def _train_labels(self) -> np.ndarray:
        labels: np.ndarray = np.array(self.cache.index.labels)[self.train_rows]
        return labels

    @cached_property
    def pixel_rows(self) -> PixelRows:
        """The images by row."""
        return PixelRows(self.cache)

    @cached_property
    def train_batches(self) -> TrainBatches:
        """The training batches, each a slice of the global batch if gradients are accumulated."""
        length = self.steps_per_epoch * self._settings.accumulate
        labels = self._train_labels if self._settings.sampling == "balanced" else None
        return TrainBatches(
            self._train_batches, self.train_rows, self.slice_size, length, self._settings.seed, self._shard, labels
        )

    def use_features(self, features: Features, epochs: int) -> None:
        """Take the first `epochs` epochs from features instead of pixels."""
        self._features, self._feature_epochs = features, epochs

    def end_with(self, end_at: Callable[[int], int]) -> None:
        """Let mixing and small views end in time for a run whose end may move: `end_at` maps the first step of an
        epoch to the steps of the run as planned there.
        """
        self._end_at = end_at

    def view_batches(self, view: int, rows: np.ndarray, size: int | None = None) -> TakeBatch:
        """Takes the batches of `rows` in a view, augmented by its draws if the run augments.

        The views have the image size unless another one is given. A row that comes again has another view each time.
        """
        size = size or self._data.image_size
        if not self._settings.augment:
            return self.pixel_rows.batches(rows, Views(self._centre_maps[rows]), size)
        again, seed = earlier_times(rows), self._settings.seed
        by_time = np.argsort(again, kind="stable")
        parts = np.split(by_time, np.cumsum(np.bincount(again))[:-1])  # the positions of each image's first view, ...
        drawn = [
            training_views(self._sizes, seed, view + _AGAIN * time, self.augmentation, rows[part])
            for time, part in enumerate(parts)
        ]
        back, tables = torch.from_numpy(np.argsort(by_time)), zip(*drawn, strict=True)
        views = Views(*(None if each[0] is None else torch.cat(each)[back] for each in tables))  # type: ignore[arg-type]
        return self.pixel_rows.batches(rows, views, size)

    def _train_batches(self, epoch: int, rows: np.ndarray) -> TakeBatch:
        if self._features is not None and epoch < self._feature_epochs:
            return self._features.train_batches(epoch, rows)
        train, size = self._settings, self._data.image_size
        epochs = self._end_at(epoch * self.steps_per_epoch) / self.steps_per_epoch
        size = view_size(epoch, epochs, train.start_size or size, size)
        take = self.view_batches(epoch, rows, size)
        if not train.mixes or epoch >= round(train.mix_until * epochs, 6):  # 0.28 * 25 is a little more than 7
            return take

        def mixed(at: slice) -> Batch:
            number = epoch * len(self.train_batches) + at.start // self.slice_size
            batch: Batch = take(at)
            return batch._replace(mix=draw_mix(train.seed, number, train.mixup, train.cutmix))

        return mixed

    def _val_batches(self, rows: np.ndarray) -> TakeBatch:
        epoch = self.train_batches.position()["epoch"]
        if self._features is None or epoch >= self._feature_epochs:
            return self._plain_batches(rows)
        return self._features.val_batches(rows)

    def _plain_batches(self, rows: np.ndarray) -> TakeBatch:
        return self.pixel_rows.batches(rows, Views(self._centre_maps[rows]), self._data.eval_size)

    def _mirrored_batches(self, rows: np.ndarray) -> TakeBatch:
        return self.pixel_rows.batches(rows, Views(mirrored(self._centre_maps[rows])), self._data.eval_size)

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch, for checkpoints. Lightning also supports a state of the loader itself, but
        restores it only in mid-epoch, not at an epoch's end.
        """
        return self.train_batches.position()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.train_batches.go_to(**state_dict)

    def train_dataloader(self) -> TrainBatches:
        return self.train_batches

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(self._val_batches, self.val_rows, self._settings.batch_size, self._shard, self._on_gpu)

    def batches(self, rows: np.ndarray, mirror: bool = False) -> EvalBatches:
        """This rank's share of the evaluation batches of any rows, each row once, as they are or mirrored."""
        take = self._mirrored_batches if mirror else self._plain_batches
        return EvalBatches(take, rows, self._settings.batch_size, self._shard, self._on_gpu)

    def unsharded_batches(self, rows: np.ndarray, view: int | None) -> EvalBatches:
        """Batches of any rows, all on this rank and in order, in a training view or, for None, as evaluated."""
        take = self._plain_batches if view is None else partial(self.view_batches, view)
        return EvalBatches(take, rows, self._settings.batch_size, full=self._on_gpu)
