"""Augmentation and evaluation views: the network's input, cut out of cached squares.

What a view looks like is decided on the CPU, for all images at once: an affine map for the sampling and three colour
factors. The device only samples and recolours a batch by them.

Sampling undoes the squash to a square: boxes are chosen as fractions of the original width and height, and fractions
are the same before and after the squash.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inat_job.data import rng
from inat_job.data.rng import COLUMNS, ERASING_COLUMNS

RATIO = (3 / 4, 4 / 3)
VIEW_FORMAT = 3
"""The version of the code that cuts views, and of the side of the squares that they are cut from: cached features of
another version are not reused, and a resume of a run that began with another warns. A test that compares the views of a
fixed image fails when this must be raised."""

_ERASED_AREA, _ERASED_RATIO, _ERASED_GREY = (0.02, 1 / 3), (0.3, 1 / 0.3), 114.0
"""Of Zhong et al., as torchvision draws it. The grey is ImageNet's mean: about 0 for the network."""

_OPERATIONS = ("identity", "shear x", "shear y", "translate x", "translate y", "rotate", *COLUMNS[-3:])
_SHEAR, _TRANSLATION, _ROTATION, _FACTOR = 0.3, 0.3, math.radians(30), 0.9
"""The largest change by each operation at full strength; a translation is a share of the view's side."""

_SIZE_STEP = 16

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114


@dataclass(frozen=True)
class Augmentation:
    """The strength of the training augmentation.

    `crop_scale` is the smallest area of a random crop, as a share of the image; `rotation` is in degrees to either
    side; `colour` is the largest relative change of brightness, contrast and saturation. `flip` is random, alternating
    or none, `operation` the strength of `operations`, 0..1, and `erase` the probability of an erased box.
    """

    crop_scale: float
    rotation: float
    colour: float
    flip: str = "random"
    operation: float = 0.0
    erase: float = 0.0


class Views(NamedTuple):
    """How the views of some images are cut."""

    maps: Tensor
    """float32 (N, 2, 3): affine, from the view's coordinates to the square's."""
    colour: Tensor | None = None
    """float32 (N, 3): factors of brightness, contrast and saturation; None leaves the colours as they are."""
    erased: Tensor | None = None
    """float32 (N, 4): left, top, right and bottom of an erased box, in shares of the view; None erases nothing."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Views":
        """What a function makes of the tables that there are."""
        maps, *others = self
        return Views(change(maps), *(None if other is None else change(other) for other in others))


def training_views(sizes: Tensor, seed: int, view: int, augmentation: Augmentation, rows: np.ndarray) -> Views:
    """The training views of `rows`, int64 (n,), drawn by `seed` and the number of the view.

    `sizes` is that of `centre_maps`, of all images: all are drawn, so that a view depends on no other image.
    """
    count, picked = len(sizes), torch.from_numpy(rows)
    draws = torch.from_numpy(rng.augmentation(seed, view, count))[picked]
    if augmentation.flip != "random":
        draws[:, COLUMNS.index("flip")] = _flip_column(seed, view, count, augmentation.flip)[picked]
    maps, colour, erased = random_maps(sizes[picked], draws, augmentation), colour_factors(draws, augmentation), None
    if augmentation.operation:
        table = torch.from_numpy(rng.operations(seed, view, count))[picked]
        changes, factors = operations(table, augmentation.operation)
        maps, colour = composed(maps, changes), factors if colour is None else colour * factors
    if augmentation.erase:
        erased = erased_boxes(torch.from_numpy(rng.erasing(seed, view, count))[picked], augmentation.erase)
    return Views(maps, colour, erased)


def _flip_column(seed: int, view: int, rows: int, flip: str) -> Tensor:
    """The draws that mirror the images that are to be."""
    mirrored = rng.alternating_flips(seed, view, rows) if flip == "alternating" else np.zeros(rows, bool)
    return torch.where(torch.from_numpy(mirrored), 0.0, 0.5)


def centre_maps(sizes: Tensor, crop: float) -> Tensor:
    """Maps of the evaluation views: the centre squares with `crop` of the short side, in the original aspect.

    `sizes` is (N, 2) with the original widths and heights. A map, of float32 (N, 2, 3), is affine and leads from the
    view's coordinates to the square's, both x, y in -1..1. All maps are computed in float64 and rounded once.
    """
    sizes = sizes.double()
    share = crop * sizes.amin(dim=1, keepdim=True) / sizes
    return torch.cat([share.diag_embed(), torch.zeros_like(share).unsqueeze(2)], dim=2).float()


def mirrored(maps: Tensor) -> Tensor:
    """The maps of the same views, mirrored from left to right."""
    return maps * torch.tensor([-1.0, 1.0, 1.0])


def random_maps(sizes: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """Maps of the training views, float32 (N, 2, 3): random resized crops, flipped and rotated by `draws`.

    `draws` is (N, len(COLUMNS)) in [0, 1), the rest is as in `centre_maps`. The crop is that of Szegedy et al., Going
    deeper with convolutions, 2014, as torchvision's RandomResizedCrop draws it. A box that does not fit is shrunk, in
    its own aspect, until it does, instead of drawn again: in an elongated image it may thus have less than the smallest
    area, but it is never distorted.
    """
    column = _columns(draws)
    share, centre = _random_box(column, sizes.double(), augmentation.crop_scale)
    turn = _rotation(column, augmentation.rotation)
    return torch.cat([share.unsqueeze(2) * turn, centre.unsqueeze(2)], dim=2).float()


def colour_factors(draws: Tensor, augmentation: Augmentation) -> Tensor | None:
    """Factors of brightness, contrast and saturation, float32 (N, 3); None if colours do not change."""
    if augmentation.colour == 0:
        return None
    column = _columns(draws)
    drawn = torch.stack([column[name] for name in ("brightness", "contrast", "saturation")], dim=1)
    return (1 + augmentation.colour * (2 * drawn - 1)).float()


def operations(draws: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """One operation for each image: affine maps float32 (N, 2, 3) within the view, and colour factors (N, 3).

    `draws` is (N, len(OPERATION_COLUMNS)) in [0, 1): which operation, and how strong to either side. This is
    TrivialAugment (S. Müller and F. Hutter, 2021, arXiv 2103.10158) with those of its operations that cost nothing
    here, since they only change the map or the factors that the view has anyway; at `strength` 1 they are as strong as
    in its space "RA".
    """
    drawn = draws.double()
    which = (drawn[:, 0] * len(_OPERATIONS)).long()
    level = strength * (2 * drawn[:, 1] - 1)

    def level_of(name: str) -> Tensor:
        return torch.where(which == _OPERATIONS.index(name), level, 0.0)

    angle = level_of("rotate") * _ROTATION
    shear_x, shear_y = angle.sin() + _SHEAR * level_of("shear x"), _SHEAR * level_of("shear y") - angle.sin()
    moved = [2 * _TRANSLATION * level_of(f"translate {axis}") for axis in "xy"]
    rows = [angle.cos(), shear_x, moved[0], shear_y, angle.cos(), moved[1]]
    factors = torch.stack([1 + _FACTOR * level_of(name) for name in COLUMNS[-3:]], dim=1)
    return torch.stack(rows, dim=1).view(-1, 2, 3).float(), factors.float()


def composed(maps: Tensor, changes: Tensor) -> Tensor:
    """The maps (N, 2, 3) of the views that are changed by other maps first."""
    linear = maps[:, :, :2].double()
    turned = linear @ changes.double()
    return torch.cat([turned[:, :, :2], turned[:, :, 2:] + maps[:, :, 2:]], dim=2).float()


def erased_boxes(draws: Tensor, probability: float) -> Tensor:
    """Boxes that are erased from the views, float32 (N, 4), see `Views`; empty where none is.

    `draws` is (N, len(ERASING_COLUMNS)) in [0, 1). (Z. Zhong et al., Random erasing data augmentation, 2017, arXiv
    1708.04896) A box that does not fit is shrunk until it does.
    """
    column = dict(zip(ERASING_COLUMNS, draws.double().unbind(1), strict=True))
    low, high = _ERASED_AREA
    area = torch.where(column["erase"] < probability, low + (high - low) * column["area"], 0.0)
    lowest, highest = (math.log(ratio) for ratio in _ERASED_RATIO)
    ratio = torch.exp(lowest + (highest - lowest) * column["ratio"])
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1.0)
    start = (1 - sides) * torch.stack([column["left"], column["top"]], dim=1)
    return torch.cat([start, start + sides], dim=1).float()


def view_size(epoch: int, epochs: float, start: int, size: int) -> int:
    """Side of the training views in an epoch, counted from 0: from `start` to `size` in steps of 16 pixels.

    It has `size` in the last third of the epochs, and at least in the last one. Small views cost less, and the network
    sees the large ones when it learns details (M. Tan and Q. Le, EfficientNetV2, 2021, arXiv 2104.00298).
    """
    rising = min(2 / 3 * epochs, epochs - 1)
    if epoch >= rising:
        return size
    steps = round((size - start) * epoch / rising / _SIZE_STEP)
    return min(start + steps * _SIZE_STEP, size)


def cut_views(pixels: Tensor, maps: Tensor, colour: Tensor | None, size: int, erased: Tensor | None = None) -> Tensor:
    """The views of a batch: float32 (B, 3, size, size) in 0..255, channels last in memory.

    `pixels` is uint8 (B, 3, S, S), the rest as in `Views`. They are always cut in float32: autocast would round
    coordinates to whole pixels.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        grid = _grid(maps, size)
        view = F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        if colour is not None:
            view = _recolour(view, colour)
        if erased is not None:
            view = _erase(view, erased)
        return view.contiguous(memory_format=torch.channels_last)


def _columns(draws: Tensor) -> dict[str, Tensor]:
    return dict(zip(COLUMNS, draws.double().unbind(1), strict=True))


def _random_box(column: dict[str, Tensor], sizes: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Shares (N, 2) of width and height, and centres (N, 2) in -1..1; the aspect in original pixels is within RATIO."""
    area = (smallest + (1 - smallest) * column["area"]) * sizes.prod(dim=1)
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = torch.exp(low + (high - low) * column["ratio"])
    box = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1)
    share = box / sizes
    share = share / share.amax(dim=1, keepdim=True).clamp(min=1.0)
    position = torch.stack([column["left"], column["top"]], dim=1)
    return share, (1 - share) * (2 * position - 1)


def _rotation(column: dict[str, Tensor], degrees: float) -> Tensor:
    """Flip and rotation (N, 2, 2) of the view about its centre."""
    angle = (2 * column["angle"] - 1) * math.radians(degrees)
    sign = torch.where(column["flip"] < 0.5, -1.0, 1.0)
    rows = [sign * angle.cos(), -angle.sin(), sign * angle.sin(), angle.cos()]
    return torch.stack(rows, dim=1).view(-1, 2, 2)


def _grid(maps: Tensor, size: int) -> Tensor:
    """Where the view's pixels are sampled, float32 (B, size, size, 2).

    Sums of products and not F.affine_grid, whose matrix product is rounded to 10 bits in TF32.
    """
    edge = 1 - 1 / size
    centres = torch.linspace(-edge, edge, size, device=maps.device)
    rows = torch.addcmul(maps[:, :, 2:], maps[:, :, 1:2], centres)
    grid = torch.addcmul(rows.unsqueeze(3), maps[:, :, :1, None], centres)
    return grid.permute(0, 2, 3, 1)


def _erase(view: Tensor, erased: Tensor) -> Tensor:
    """The boxes in grey; `view` is overwritten. A pixel is in a box if its centre is."""
    size = view.shape[-1]
    centres = torch.linspace(0.5 / size, 1 - 0.5 / size, size, device=view.device)
    inside = (centres >= erased[:, :2, None]) & (centres < erased[:, 2:, None])  # (B, 2, size): columns, rows
    return view.masked_fill_((inside[:, 1, :, None] & inside[:, 0, None, :]).unsqueeze(1), _ERASED_GREY)


def _recolour(view: Tensor, colour: Tensor) -> Tensor:
    """Brightness, contrast and saturation, each scaled by its factor; `view` is overwritten."""
    brightness, contrast, saturation = colour.view(-1, 3, 1, 1, 1).unbind(1)
    view = view.mul_(brightness).clamp_(0, 255)
    mean = _grey(view.mean(dim=(2, 3), keepdim=True))
    view = torch.lerp(mean, view, contrast).clamp_(0, 255)
    return torch.lerp(_grey(view), view, saturation).clamp_(0, 255)


def _grey(view: Tensor) -> Tensor:
    """Luma (B, 1, H, W) of (B, 3, H, W); numbers and not a tensor of weights, which would be copied to the device."""
    red, green, blue = view.chunk(3, dim=1)
    return torch.add(red * _RED, green, alpha=_GREEN).add_(blue, alpha=_BLUE)
