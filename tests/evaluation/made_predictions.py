"""Tables of predictions made of drawn logits."""

from collections.abc import Sequence

import numpy as np

from inat_job.data.cache_index import CacheIndex
from inat_job.evaluation.prediction_table import PredictionTable


def index_of(ids: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> CacheIndex:
    """The index of a cache whose rows are of train and test by turns."""
    n = len(ids)
    sizes, hashes = ((8, 8),) * n, ("0" * 64,) * n
    splits = tuple("test" if number % 2 else "train" for number in range(n))
    return CacheIndex("x.zip", "", 8, tuple(classes), tuple(ids), tuple(labels), splits, sizes, hashes, (), "")


def table_of(logits: np.ndarray, labels: Sequence[int], classes: Sequence[str] = ()) -> PredictionTable:
    """The table of a test split, its classes and ids numbered."""
    names = classes or [f"class {number}" for number in range(logits.shape[1])]
    index = index_of([f"test/{number:04d}" for number in range(len(labels))], labels, names)
    return PredictionTable.from_logits(index, "test", np.arange(len(labels)), logits.astype(np.float32))


def drawn_table(seed: int, n: int, classes: int, skill: float = 1.5, scale: float = 1.0) -> PredictionTable:
    """Predictions that favour the true class by `skill`; some classes may have no image."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes, n)
    logits = draws.standard_normal((n, classes))
    logits[np.arange(n), labels] += skill
    return table_of(logits * scale, labels.tolist())
