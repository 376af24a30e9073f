"""Classes of unequal size: weights in the loss, or epochs that have images of each class equally often."""

import numpy as np

from inat_job.data import rng


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """The weight of each class, float64 (classes,), given its training images: n / (k * count), the mean image has 1.

    n is the number of images and k that of the classes that have any; a class without images has weight 0.
    """
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def earlier_times(rows: np.ndarray) -> np.ndarray:
    """How often the row at each position was among those before it, int64 (n,), given rows int64 (n,)."""
    sorted_at = np.argsort(rows, kind="stable")
    starts = np.flatnonzero(np.diff(rows[sorted_at], prepend=-1))
    times = np.empty(len(rows), dtype=np.int64)
    times[sorted_at] = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return times


def balanced_order(seed: int, epoch: int, labels: np.ndarray) -> np.ndarray:
    """The positions of an epoch's images, int64 (n,), as many as there are `labels`, int64 (n,).

    Each class that occurs has n / k of them, rounded down or up. Within a class each image comes equally often but for
    one time: of a large class some are left out, others in each epoch, and of a small one all are repeated.
    """
    generator = rng.balance(seed, epoch)
    classes = generator.permutation(np.unique(labels))
    share, left = divmod(len(labels), len(classes))
    chosen = []
    for at, label in enumerate(classes):
        positions = np.flatnonzero(labels == label)
        whole, some = divmod(share + (at < left), len(positions))
        chosen += [np.tile(positions, whole), generator.permutation(positions)[:some]]
    return generator.permutation(np.concatenate(chosen))
