"""Mixing of images within a batch, mixup and CutMix: each image with its neighbour in the batch.

Positions 2i and 2i + 1 of a batch are a pair. The order of the images is random, so pairs are too; and a pair is in one
rank's share whatever the number of ranks, as long as the share is even. What is mixed is drawn once for a batch.
"""

import math
from typing import NamedTuple

from torch import Tensor

from inat_job.data import rng


class Mix(NamedTuple):
    """How a batch is mixed.

    `share` is that of an image's own pixels, 0..1; the rest is its neighbour's. CutMix takes them from a box, whose
    centre is at `x`, `y` in 0..1; mixup from all over the image.
    """

    is_cutmix: bool
    share: float
    x: float
    y: float

    def box(self, size: int) -> tuple[slice, slice]:
        """The rows and columns of a view of `size` pixels that CutMix takes from the neighbour, cut at the edges."""
        half = round(size * math.sqrt(1 - self.share)) / 2
        return _within(self.y * size, half, size), _within(self.x * size, half, size)

    def own_share(self, size: int) -> float:
        """The share of an image's own pixels in a view of `size` pixels, and so of its own label."""
        if not self.is_cutmix:
            return self.share
        rows, columns = self.box(size)
        taken: int = (rows.stop - rows.start) * (columns.stop - columns.start)
        return 1 - taken / size**2


def draw_mix(seed: int, number: int, mixup: float, cutmix: float) -> Mix:
    """How the batch of this number is mixed; `mixup` and `cutmix` are the alphas of their Beta distributions.

    With both, each batch gets one of them, as likely as the other. (H. Zhang et al., mixup, 2018, arXiv 1710.09412;
    S. Yun et al., CutMix, 2019, arXiv 1905.04899)
    """
    generator = rng.mixing(seed, number)
    which, x, y = generator.random(3).tolist()
    is_cutmix = cutmix > 0 and (mixup == 0 or which < 0.5)
    alpha = cutmix if is_cutmix else mixup
    return Mix(is_cutmix, float(generator.beta(alpha, alpha)), x, y)


def mix_views(views: Tensor, mix: Mix) -> Tensor:
    """The views (B, 3, S, S), each mixed with its neighbour's in place; the last of an odd number stays as it is."""
    first, second = _pairs(views)
    if mix.is_cutmix:
        rows, columns = mix.box(views.shape[-1])
        kept = first[:, :, rows, columns].clone()
        first[:, :, rows, columns] = second[:, :, rows, columns]
        second[:, :, rows, columns] = kept
    else:
        change = (second - first).mul_(1 - mix.share)
        first += change
        second -= change
    return views


def of_neighbours(labels: Tensor) -> Tensor:
    """The labels (B,) of each image's neighbour; the last of an odd number has its own."""
    swapped = labels.clone()
    for own, other in zip(_pairs(swapped), reversed(_pairs(labels)), strict=True):
        own.copy_(other)
    return swapped


def _pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    even = len(values) // 2 * 2
    return values[0:even:2], values[1:even:2]


def _within(centre: float, half: float, size: int) -> slice:
    return slice(max(0, round(centre - half)), min(size, round(centre + half)))
