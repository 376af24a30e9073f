"""Images that a person should look at: likely label errors, and near-duplicates between splits. Needs no torch."""

from dataclasses import dataclass

import numpy as np

from inat_job.data.cache_index import Cache
from inat_job.evaluation.metrics import wilson_interval
from inat_job.evaluation.prediction_table import PredictionTable

HASH_SIDE = 16
_SAMPLES = 4
"""Pixels of a cell that are averaged, in either direction."""

NEAR_BITS = 20
"""Bits of 256 in which the hashes of near-duplicates differ at most; those of unrelated images differ in about half."""

_LEAST_CONTRAST = 4.0
_AT_A_TIME = 16
"""Images whose hashes are computed, or compared with all others, at a time; few, for the processor's cache."""


@dataclass(frozen=True)
class LabelIssue:
    """An image whose label is likely wrong: its position in the table, the likely class, and the normalised margin."""

    at: int
    likely: int
    margin: float
    """p[label] - max p[other], -1..0."""


@dataclass(frozen=True)
class NearDuplicate:
    """Two images in different splits that look alike: their rows in the cache, and the bits that differ, 0..256."""

    row: int
    other: int
    bits: int


def label_issues(table: PredictionTable) -> list[LabelIssue]:
    """Likely label errors, the likeliest first, by confident learning (Northcutt et al., 2021).

    The threshold of a class is the mean probability of that class over the images with its label. An image counts for
    the most probable of the classes whose threshold it reaches; those off the diagonal of this confident joint are the
    likely errors, ranked by their normalised margin. The probabilities must be of images that were not trained on.
    """
    p, labels = table.probabilities, table.labels
    if not len(table):
        return []
    present = np.isin(np.arange(p.shape[1]), labels)
    thresholds = np.array([p[labels == j, j].mean() if present[j] else np.inf for j in range(p.shape[1])])
    reached = np.where(p >= thresholds, p, -1.0)
    likely = reached.argmax(axis=1)
    own = p[np.arange(len(p)), labels]
    others = p.copy()
    others[np.arange(len(p)), labels] = -1.0
    margins = own - others.max(axis=1)
    errors = np.flatnonzero((reached.max(axis=1) >= 0) & (likely != labels) & (margins < 0))
    ranked = errors[np.argsort(margins[errors], kind="stable")]
    return [LabelIssue(int(at), int(likely[at]), float(margins[at])) for at in ranked]


def too_weak_for_labels(table: PredictionTable) -> str:
    """Why these predictions cannot cast doubt on labels, as a sentence; empty if they can.

    Confident learning needs a model that is mostly right: one near chance disagrees with right labels as well. Enough
    is an accuracy whose 95 % interval is above one half, and above the largest class's share plus a quarter of what
    that share leaves to 1.
    """
    if not len(table):
        return ""
    largest = float(np.bincount(table.labels).max()) / len(table)
    needed, right = max(0.5, largest + (1 - largest) / 4), int((table.predicted == table.labels).sum())
    low = wilson_interval(right, len(table))[0]
    if low > needed:
        return ""
    return (
        f"Not listed: a model that is right on {right} of {len(table)} validation images cannot cast doubt on labels. "
        f"The 95 % interval of its accuracy begins at {100 * low:.1f} %, and must begin above {100 * needed:.1f} %."
    )


def near_duplicates(cache: Cache, splits: dict[str, np.ndarray], most: int = 1000) -> list[NearDuplicate]:
    """Pairs of look-alike images in different splits, the closest first, each test or validation image once.

    `splits` has the rows of each split, int64, the one to look in last: each split is compared with all after it. The
    distance is the number of bits in which the images' difference hashes differ (see `hashes`); an image without
    contrast has none that means anything, and is left out.
    """
    bits, contrast = hashes(cache)
    found: dict[int, NearDuplicate] = {}
    names = list(splits)
    for number, name in enumerate(names[:-1]):
        rest = [splits[other] for other in names[number + 1 :]]
        ours, theirs = (rows[contrast[rows] >= _LEAST_CONTRAST] for rows in (splits[name], np.concatenate(rest)))
        for pair in _nearest(bits, ours, theirs):
            if pair.bits <= NEAR_BITS:
                found[pair.row] = pair
    return sorted(found.values(), key=lambda pair: (pair.bits, pair.row))[:most]


def hashes(cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """The difference hash of each image of a cache, uint64 (rows, 4), and its contrast, float32 (rows,) in 0..128.

    A bit says whether a cell of a grid of 16 x 17 is brighter than its left neighbour (Krawetz, Kind of like that,
    2013). Brightness is the mean of up to 4 x 4 pixels spread over the cell, of the squared image in the cache; the
    contrast is its standard deviation.
    """
    side = cache.index.side
    at_y = np.linspace(0, side - 1, HASH_SIDE * _SAMPLES).round().astype(int)
    at_x = np.linspace(0, side - 1, (HASH_SIDE + 1) * _SAMPLES).round().astype(int)
    bits = np.empty((len(cache.pixels), HASH_SIDE**2 // 64), dtype=np.uint64)
    contrast = np.empty(len(cache.pixels), dtype=np.float32)
    for start in range(0, len(bits), _AT_A_TIME):
        some = slice(start, start + _AT_A_TIME)
        strips = np.take(cache.pixels[some], at_y, axis=1).reshape(-1, HASH_SIDE, _SAMPLES, side, 3)
        strips = np.take(strips.sum(axis=2, dtype=np.uint16), at_x, axis=2)  # rows are added first, to copy less
        cells = strips.reshape(-1, HASH_SIDE, HASH_SIDE + 1, 3 * _SAMPLES).sum(axis=3, dtype=np.int32)
        bits[some] = np.packbits(cells[:, :, 1:] > cells[:, :, :-1]).view(np.uint64).reshape(len(cells), -1)
        contrast[some] = cells.std(axis=(1, 2)) / (3 * _SAMPLES**2)
    return bits, contrast


def _nearest(bits: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> list[NearDuplicate]:
    """The nearest of `theirs` to each of `ours`, both rows, int64."""
    if not len(theirs):
        return []
    pairs = []
    words = np.ascontiguousarray(bits[theirs].T)
    for start in range(0, len(ours), _AT_A_TIME):
        some = ours[start : start + _AT_A_TIME]
        distances = np.zeros((len(some), len(theirs)), dtype=np.uint16)
        for number, word in enumerate(words):
            distances += np.bitwise_count(bits[some, number][:, None] ^ word)
        nearest = distances.argmin(axis=1)
        values = distances[np.arange(len(some)), nearest]
        pairs += [NearDuplicate(int(a), int(theirs[b]), int(c)) for a, b, c in zip(some, nearest, values, strict=True)]
    return pairs
