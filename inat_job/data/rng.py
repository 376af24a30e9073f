"""Everything random in training, as pure functions: order and augmentation, and torch's seed of each step.

Each stream of draws is a Philox generator keyed by (seed, purpose, number), so that none depends on the draws before it
(J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011).
"""

from enum import IntEnum

import numpy as np

COLUMNS = ("area", "ratio", "left", "top", "flip", "angle", "brightness", "contrast", "saturation")


class _Stream(IntEnum):
    ORDER = 0
    AUGMENTATION = 1
    MODEL = 2
    BALANCE = 16


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` training images in an epoch: a permutation, int64."""
    return _generator(seed, _Stream.ORDER, epoch).permutation(count)


def balance(seed: int, epoch: int) -> np.random.Generator:
    """What an epoch with images of each class equally often is drawn from, see imbalance.py."""
    return _generator(seed, _Stream.BALANCE, epoch)


def augmentation(seed: int, view: int, rows: int) -> np.ndarray:
    """Uniform draws in [0, 1) for one view of every cached image: float32 of shape (rows, len(COLUMNS))."""
    return _generator(seed, _Stream.AUGMENTATION, view).random((rows, len(COLUMNS)), dtype=np.float32)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of torch's own generators (dropout) at a step of a rank, below 2**63."""
    words = np.random.SeedSequence([seed, _Stream.MODEL, step, rank]).generate_state(1, np.uint64)
    return int(words[0] >> 1)


def _generator(seed: int, stream: _Stream, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, number])))
