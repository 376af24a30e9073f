"""The features of a frozen stem on disk: computed once per view of the images, and read in every epoch of that view.

The features of one training view, or of the validation set, are a file of rows and a note with their shape and SHA-256.
The note is written last: features without a note, or with other contents, don't exist.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inat_job.data.batches import DeviceRows, TakeBatch
from inat_job.storage.cache_locks import FolderHold
from inat_job.storage.disk import open_unlinked, read_json_object, sha256_of, write_atomic


class FeatureBatch(NamedTuple):
    """A batch after the frozen stem."""

    features: Tensor
    """(B, ...) in the dtype that the stem computes in."""
    labels: Tensor
    """int64 (B,)."""


class FeatureFile:
    """The features of some rows of the cache, in the order of `rows`; usable once they are loaded."""

    def __init__(self, folder: Path, name: str, rows: np.ndarray) -> None:
        self._path, self._note = folder / f"{name}.bin", folder / f"{name}.json"
        self.rows = rows
        self.features: DeviceRows | None = None
        """(n, ...), once they are loaded."""

    def load(self) -> bool:
        """Load the features; returns whether they exist and are intact."""
        try:
            note = read_json_object(self._note)
            shape, dtype = tuple(note["shape"]), getattr(torch, note["dtype"])
            if shape[0] != len(self.rows) or sha256_of(self._path) != note["sha256"]:
                return False
            features = torch.from_file(str(self._path), shared=False, size=int(np.prod(shape)), dtype=dtype)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
            return False
        self.features = DeviceRows(features.view(shape))
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the loaded features."""
        return 0 if self.features is None else self.features.nbytes

    def writer(self) -> "FeatureWriter":
        """A writer that replaces the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return FeatureWriter(self._path, self._note)

    def batches(self, positions: Tensor, labels: Tensor) -> TakeBatch:
        """Takes the batches of the rows at `positions`, int64 (n,), within `rows`, in this order, with their labels."""
        assert self.features is not None
        features, labels = self.features.in_order(positions), self.features.upload(labels)
        return lambda at: FeatureBatch(features(at), labels[at])


class FeatureWriter:
    """Writes features batch by batch, in order; an unfinished file leaves nothing."""

    def __init__(self, path: Path, note: Path) -> None:
        self._path, self._note = path, note
        self._draft = path.with_suffix(".tmp")
        self._digest = hashlib.sha256()
        self._shape: list[int] = []
        self._dtype = ""

    def __enter__(self) -> "FeatureWriter":
        with suppress(FileNotFoundError):
            self._note.unlink()
        self._file: IO[bytes] = open_unlinked(self._draft, "wb")
        return self

    def add(self, features: Tensor) -> None:
        """Append (B, ...) features. Raises OSError."""
        block = features.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.write(block)
        self._digest.update(block)
        self._shape = [sum(self._shape[:1]) + len(features), *features.shape[1:]]
        self._dtype = str(features.dtype).removeprefix("torch.")

    def __exit__(self, kind: type | None, *error: object) -> None:
        self._file.close()
        if kind is not None:
            self._draft.unlink()
            return
        self._draft.replace(self._path)
        note = {"shape": self._shape, "dtype": self._dtype, "sha256": self._digest.hexdigest()}
        write_atomic(self._note, json.dumps(note).encode())


class Features:
    """A run's features: `views` of the training rows by number, and the validation rows if there are any.

    `plain` are the training rows as they would be evaluated, if `with_plain`. `held` keeps their folder from being
    deleted.
    """

    def __init__(
        self,
        folder: Path,
        labels: np.ndarray,
        train: np.ndarray,
        val: np.ndarray,
        views: int,
        with_plain: bool = False,
    ) -> None:
        self.views = {view: FeatureFile(folder, f"train-{view}", train) for view in range(views)}
        self.plain = FeatureFile(folder, "train-plain", train) if with_plain else None
        self.val = FeatureFile(folder, "val", val) if len(val) else None
        self.held: FolderHold | None = None
        self._labels = torch.from_numpy(labels)
        self._positions: Mapping[str, Tensor] = {
            "train": _positions(train, len(labels)),
            "val": _positions(val, len(labels)),
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all features."""
        return sum(file.nbytes for file in self._files())

    def place(self, device: torch.device, resident: bool) -> None:
        """Let batches be used on a device, see DeviceRows."""
        for file in self._files():
            assert file.features is not None
            file.features.place(device, resident)

    def train_batches(self, epoch: int, rows: np.ndarray) -> TakeBatch:
        """Takes the batches of training rows of the cache, in the view of an epoch."""
        return self._batches(self.views[epoch % len(self.views)], "train", rows)

    def val_batches(self, rows: np.ndarray) -> TakeBatch:
        """Takes the batches of validation rows of the cache."""
        assert self.val
        return self._batches(self.val, "val", rows)

    def labels_of(self, file: FeatureFile) -> Tensor:
        """The labels of a file's rows, int64 (n,)."""
        return self._labels[torch.from_numpy(file.rows)]

    def _batches(self, file: FeatureFile, split: str, rows: np.ndarray) -> TakeBatch:
        picked = torch.from_numpy(rows)
        return file.batches(self._positions[split][picked], self._labels[picked])

    def _files(self) -> list[FeatureFile]:
        return [*self.views.values(), *(each for each in (self.plain, self.val) if each)]


def _positions(rows: np.ndarray, count: int) -> Tensor:
    """The position within `rows` of each row of the cache, int64 (count,); -1 if it is not among them."""
    positions = torch.full((count,), -1)
    positions[torch.from_numpy(rows)] = torch.arange(len(rows))
    return positions
