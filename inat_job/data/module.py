"""The data set as Lightning's trainer takes it: the cache, its three splits and their batches."""

from functools import cached_property, partial

import numpy as np
from lightning import LightningDataModule

from inat_job.data import layout, rng, splits
from inat_job.data.batches import WHOLE, EvalBatches, Share, Take, TrainBatches
from inat_job.data.cache_index import Cache
from inat_job.data.features import Features
from inat_job.data.pixels import PixelRows
from inat_job.errors import BadDataError, ConflictError
from inat_job.settings import TrainSettings


class ImageDataModule(LightningDataModule):
    """Train, validation and test batches of a cache, or of the features that were made of it.

    `pinned` is for a GPU, `share` the rank whose batches these are. Raises BadDataError where nothing is left to
    validate on, ConflictError for a batch larger than the training set.
    """

    def __init__(self, cache: Cache, train: TrainSettings, pinned: bool = False, share: Share = WHOLE) -> None:
        super().__init__()
        self.cache, self._pinned, self._share = cache, pinned, share
        self._features: Features | None = None
        self._reused_epochs = 0
        self._settings = train
        rows = cache.index.rows(layout.TRAIN)
        hashes = [cache.index.hashes[row] for row in rows]
        labels = [cache.index.labels[row] for row in rows]
        held_out = splits.validation(hashes, labels, train.seed)
        self.split_digest = splits.digest(hashes, held_out)
        self.train_rows: np.ndarray = rows[~np.array(held_out)]
        self.val_rows: np.ndarray = rows[np.array(held_out)]
        self.test_rows: np.ndarray = cache.index.rows(layout.TEST)
        if len(self.val_rows) == 0:
            raise BadDataError(
                f"{cache.index.source} leaves no image for validation, since no class has two different ones "
                "in train: add some."
            )
        if len(self.train_rows) < train.batch_size:
            raise ConflictError(
                f"--batch-size is {train.batch_size} and there are {len(self.train_rows)} images to train on: "
                "lower it, since a last partial batch is dropped."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.train_rows) // self._settings.batch_size

    @property
    def slice_size(self) -> int:
        """ImageDataModule in a batch as it is worked through: the whole, or a slice where gradients are accumulated.

        That of all ranks together."""
        return self._settings.batch_size // self._settings.accumulate

    @property
    def dropped_per_epoch(self) -> int:
        """Training images that an epoch leaves out, others each time, since its last batch would be partial."""
        return len(self.train_rows) % self._settings.batch_size

    @cached_property
    def squares(self) -> PixelRows:
        """The images by row."""
        return PixelRows(self.cache, self._pinned)

    @cached_property
    def train_batches(self) -> TrainBatches:
        """Batches for training, each a slice of the global batch where gradients are accumulated."""
        length = self.steps_per_epoch * self._settings.accumulate
        return TrainBatches(
            self._train_take, self.train_rows, self.slice_size, length, self._settings.seed, self._share
        )

    def reuse(self, features: Features, epochs: int) -> None:
        """Take the first `epochs` epochs from features."""
        self._features, self._reused_epochs = features, epochs

    def view(self, number: int) -> Take:
        """How batches of a view are taken: augmented by its draws, if the run augments."""
        seed, count = self._settings.seed, len(self.cache.index.ids)
        table = rng.augmentation(seed, number, count) if self._settings.augment else None
        return partial(self.squares.take, table=table)

    def _train_take(self, epoch: int) -> Take:
        if self._features is None or epoch >= self._reused_epochs:
            return self.view(epoch)
        return partial(self._features.take_train, epoch=epoch)

    def _val_take(self) -> Take:
        epoch = self.train_batches.position()["epoch"]
        if self._features is None or epoch >= self._reused_epochs:
            return self._plain()
        return self._features.take_val

    def _plain(self) -> Take:
        return partial(self.squares.take, table=None)

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch, for checkpoints. Were it the loader's own state, which Lightning would also keep,
        it would come back in the middle of an epoch, and not after one."""
        return self.train_batches.position()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.train_batches.go_to(**state_dict)

    def train_dataloader(self) -> TrainBatches:
        return self.train_batches

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(self._val_take, self.val_rows, self._settings.batch_size, self._share)

    def batches(self, rows: np.ndarray) -> EvalBatches:
        """Batches of any rows, once, as they are evaluated: this rank's share."""
        return EvalBatches(self._plain, rows, self._settings.batch_size, self._share)

    def viewed(self, rows: np.ndarray, view: int | None) -> EvalBatches:
        """Batches of any rows, all of them on this rank and in order; in a view of training, or as evaluated."""
        return EvalBatches(self._plain if view is None else partial(self.view, view), rows, self._settings.batch_size)
