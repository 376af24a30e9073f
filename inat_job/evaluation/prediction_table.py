"""The predictions of a run: one row for each validation and test image, kept as predictions.csv. Needs no torch."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from inat_job.data.cache_index import CacheIndex
from inat_job.errors import BadDataError

NAME = "predictions.csv"
_FIXED = ("id", "split", "label", "predicted", "loss")
_PROBABILITY = "p:"
_LEAST = 5e-324
"""The least float64 above zero."""


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """What the model says of each image of a split, in the order of the cache's rows."""

    classes: tuple[str, ...]
    rows: np.ndarray
    """(n,) int64, the images' rows in the cache; -1 where the table was read from a file."""
    ids: tuple[str, ...]
    """The images' names in the data set."""
    splits: np.ndarray
    """(n,) str, "val" or "test"."""
    labels: np.ndarray
    """(n,) int64."""
    probabilities: np.ndarray
    """(n, classes) float64, softmax of the float32 logits."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(n,) int64, the most probable classes; the first of equally probable ones."""
        predicted: np.ndarray = self.probabilities.argmax(axis=1)
        return predicted

    @cached_property
    def losses(self) -> np.ndarray:
        """(n,) float64, cross-entropy of each image in nats: -log p[label]."""
        p = self.probabilities[np.arange(len(self)), self.labels]
        losses: np.ndarray = np.abs(log_probabilities(p))  # not -log, which is -0.0 where p is 1
        return losses

    @cached_property
    def confidences(self) -> np.ndarray:
        """(n,) float64, the probability of the predicted class."""
        confidences: np.ndarray = self.probabilities.max(axis=1)
        return confidences

    def split(self, name: str) -> Self:
        """The images of one split; none if the table has none."""
        return self.take(np.flatnonzero(self.splits == name))

    def take(self, at: np.ndarray) -> Self:
        """The images at some positions, int64 (m,), in that order."""
        ids = tuple(self.ids[int(each)] for each in at)
        return type(self)(self.classes, self.rows[at], ids, self.splits[at], self.labels[at], self.probabilities[at])

    @classmethod
    def from_logits(cls, index: CacheIndex, split: str, rows: np.ndarray, logits: np.ndarray) -> Self:
        """The table of one split, from its `rows` int64 (n,) of the index and its logits, float32 (n, classes)."""
        return cls(
            index.classes,
            rows,
            tuple(index.ids[row] for row in rows),
            np.full(len(rows), split),
            np.array([index.labels[row] for row in rows], dtype=np.int64),
            softmax(logits.astype(np.float64)),
        )

    @classmethod
    def joined(cls, tables: Sequence[Self]) -> Self:
        """The tables of several splits of one cache as one, in the order of the cache's rows."""
        whole = cls(
            tables[0].classes,
            np.concatenate([table.rows for table in tables]),
            tuple(name for table in tables for name in table.ids),
            np.concatenate([table.splits for table in tables]),
            np.concatenate([table.labels for table in tables]),
            np.concatenate([table.probabilities for table in tables]),
        )
        return whole.take(np.argsort(whole.rows, kind="stable"))

    def write_csv(self, path: Path) -> None:
        """Write the table as RFC 4180 has it, in UTF-8, its numbers in the shortest form that reads back exactly.

        Raises OSError.
        """
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*_FIXED, *(_PROBABILITY + name for name in self.classes)])
            columns = (self.ids, self.splits, self.labels, self.predicted, self.losses, self.probabilities)
            for name, split, label, predicted, loss, p in zip(*columns, strict=True):
                row = [name, split, self.classes[label], self.classes[predicted], float(loss), *p.tolist()]
                writer.writerow(row)

    @classmethod
    def read_csv(cls, path: Path, uri: str = "") -> Self:
        """The table in a file of `write_csv`, with rows of -1. Raises BadDataError for another file.

        The error names `uri`, by default the path, and the line.
        """
        line = 0
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = csv.reader(file)
                try:
                    return cls._read(lines)
                finally:
                    line = lines.line_num
        except (OSError, ValueError, StopIteration, csv.Error) as error:
            reason = str(error) or "it is empty"
            raise BadDataError(
                f"{uri or path}, line {line}, cannot be read as predictions ({reason}): test the run again."
            ) from None

    @classmethod
    def _read(cls, lines: Iterator[list[str]]) -> Self:
        head = next(lines)
        classes = tuple(name.removeprefix(_PROBABILITY) for name in head[len(_FIXED) :])
        if head != [*_FIXED, *(_PROBABILITY + name for name in classes)] or len(set(classes)) < 2:
            raise ValueError("its header is not that of predictions")
        label_of = {name: label for label, name in enumerate(classes)}
        ids, splits, labels, probabilities = [], [], [], []
        for row in lines:
            if len(row) != len(head):
                raise ValueError(f"it has {len(row)} of {len(head)} columns")
            name, split, label, _, _, *p = row
            if label not in label_of:
                raise ValueError(f"there is no class {label!r}")
            ids.append(name)
            splits.append(split)
            labels.append(label_of[label])
            probabilities.append(np.array(p, dtype=np.float64))
            if not ((probabilities[-1] >= 0) & (probabilities[-1] <= 1)).all():
                raise ValueError(f"{name!r} has a probability beyond 0 and 1")
        return cls(
            classes,
            np.full(len(ids), -1),
            tuple(ids),
            np.array(splits, dtype=np.str_),
            np.array(labels, dtype=np.int64),
            np.array(probabilities, dtype=np.float64).reshape(len(ids), len(classes)),
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 (n, classes), of logits, float64 (n, classes)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """The logarithms, which are logits of these probabilities. That of 0, a rounded probability, is -744.4."""
    logarithms: np.ndarray = np.log(np.maximum(probabilities, _LEAST))
    return logarithms
