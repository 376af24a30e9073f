"""Outputs of a frozen stem, kept on disk: computed once for a view of the images, read in every epoch that has it.

A part (one training view, or the validation set) is a file of its rows and a note with their shape and SHA-256,
which is written last: a part without a note, or with another content, is not there.
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

from inat_job.storage import cache_locks
from inat_job.storage.cache_locks import FolderHold
from inat_job.storage.disk import sha256_of


class FeatureBatch(NamedTuple):
    """What is left to do of a batch whose stem is done."""

    features: Tensor
    """(B, ...) in whatever the stem computes in."""
    labels: Tensor
    """int64 (B,)."""


class FeaturePart:
    """The features of some rows of the cache, in their order, once they are loaded."""

    def __init__(self, folder: Path, name: str, rows: np.ndarray) -> None:
        self._path, self._note = folder / f"{name}.bin", folder / f"{name}.json"
        self.rows = rows
        self._features: Tensor | None = None

    def load(self) -> bool:
        """Whether the part is there and intact; it can be taken from then."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            shape, dtype = tuple(note["shape"]), getattr(torch, note["dtype"])
            if shape[0] != len(self.rows) or sha256_of(self._path) != note["sha256"]:
                return False
            self._features = torch.from_file(str(self._path), shared=False, size=int(np.prod(shape)), dtype=dtype)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
            return False
        self._features = self._features.view(shape)
        return True

    @property
    def nbytes(self) -> int:
        """What a loaded part takes."""
        return 0 if self._features is None else self._features.nbytes

    def writer(self) -> "FeatureWriter":
        """What writes the part anew."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return FeatureWriter(self._path, self._note)

    def take(self, positions: Tensor, labels: Tensor) -> FeatureBatch:
        """The batch of the rows at `positions` among the part's."""
        assert self._features is not None
        return FeatureBatch(self._features.index_select(0, positions), labels)


class FeatureWriter:
    """Takes the features of a part batch by batch, in order; a part that is not finished leaves nothing."""

    def __init__(self, path: Path, note: Path) -> None:
        self._path, self._note = path, note
        self._draft = path.with_suffix(".tmp")
        self._digest = hashlib.sha256()
        self._shape: list[int] = []
        self._dtype = ""

    def __enter__(self) -> "FeatureWriter":
        with suppress(FileNotFoundError):
            self._note.unlink()
        self._file: IO[bytes] = self._draft.open("wb")
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
        cache_locks.write(self._note, json.dumps(note).encode())


class Features:
    """The parts of a run: `views` of the training rows by number, and the validation rows; `held` while it works."""

    def __init__(self, folder: Path, labels: np.ndarray, train: np.ndarray, val: np.ndarray, views: int) -> None:
        self.views = {view: FeaturePart(folder, f"train-{view}", train) for view in range(views)}
        self.val = FeaturePart(folder, "val", val)
        self.held: FolderHold | None = None
        self._labels = torch.from_numpy(labels)
        self._places: Mapping[str, Tensor] = {"train": _places(train, len(labels)), "val": _places(val, len(labels))}

    def take_train(self, rows: np.ndarray, epoch: int) -> FeatureBatch:
        """Training rows of the cache in the view that an epoch has."""
        return self._take(self.views[epoch % len(self.views)], "train", rows)

    def take_val(self, rows: np.ndarray) -> FeatureBatch:
        """Validation rows of the cache."""
        return self._take(self.val, "val", rows)

    def _take(self, part: FeaturePart, split: str, rows: np.ndarray) -> FeatureBatch:
        picked = torch.from_numpy(rows)
        return part.take(self._places[split][picked], self._labels[picked])


def _places(rows: np.ndarray, count: int) -> Tensor:
    """Where each row of the cache stands among `rows`, int64 (count,)."""
    places = torch.full((count,), -1)
    places[torch.from_numpy(rows)] = torch.arange(len(rows))
    return places
