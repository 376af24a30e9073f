"""Augmentation and evaluation views: cuts the network's input out of cached squares, batched, on the batch's device.

Sampling undoes the squash to a square: boxes are chosen as fractions of the original width and height, and fractions
are the same before and after the squash.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inat_job.data.rng import COLUMNS

RATIO = (3 / 4, 4 / 3)
VIEW_FORMAT = 1
"""The version of the code that cuts views: cached features of another version are not reused. A test that compares the
views of a fixed image fails when this must be raised."""

_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """The strength of the training augmentation.

    `crop_scale` is the smallest area of a random crop, as a share of the image; `rotation` is in degrees to either
    side; `colour` is the largest relative change of brightness, contrast and saturation.
    """

    crop_scale: float
    rotation: float
    colour: float


def centre_view(pixels: Tensor, sizes: Tensor, size: int, crop: float) -> Tensor:
    """The evaluation view: the centre square with `crop` of the short side, in the original aspect.

    `pixels` is uint8 (B, 3, S, S), `sizes` float (B, 2) with the original widths and heights; returns float32
    (B, 3, size, size) in 0..255.
    """
    share = crop * sizes.amin(dim=1, keepdim=True) / sizes
    return _sample(pixels, _affine(share, torch.zeros_like(share)), size)


def random_view(pixels: Tensor, sizes: Tensor, draws: Tensor, size: int, augmentation: Augmentation) -> Tensor:
    """The training view: a random resized crop, flipped, rotated and recoloured by `draws`.

    `draws` is (B, len(COLUMNS)) in [0, 1); the other shapes and the range are those of `centre_view`. The crop is that
    of Szegedy et al., Going deeper with convolutions, 2014, as torchvision's RandomResizedCrop draws it. A box that
    does not fit is shrunk, in its own aspect, until it does, instead of drawn again: in an elongated image it may thus
    have less than the smallest area, but it is never distorted.
    """
    column = dict(zip(COLUMNS, draws.unbind(1), strict=True))
    share, centre = _random_box(column, sizes, augmentation.crop_scale)
    theta = _affine(share, centre) @ _rotation(column, augmentation.rotation)
    return _recolour(_sample(pixels, theta, size), column, augmentation.colour)


def _random_box(column: dict[str, Tensor], sizes: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Shares (B, 2) of width and height, and centres (B, 2) in -1..1; the aspect in original pixels is within RATIO."""
    area = (smallest + (1 - smallest) * column["area"]) * sizes.prod(dim=1)
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = torch.exp(low + (high - low) * column["ratio"])
    box = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1)
    share = box / sizes
    share = share / share.amax(dim=1, keepdim=True).clamp(min=1.0)
    position = torch.stack([column["left"], column["top"]], dim=1)
    return share, (1 - share) * (2 * position - 1)


def _affine(share: Tensor, centre: Tensor) -> Tensor:
    """Affine maps (B, 3, 3) from the view's coordinates to the image's, both in -1..1."""
    theta = torch.zeros(len(share), 3, 3, device=share.device)
    theta[:, 0, 0], theta[:, 1, 1] = share.unbind(1)
    theta[:, :2, 2] = centre
    theta[:, 2, 2] = 1.0
    return theta


def _rotation(column: dict[str, Tensor], degrees: float) -> Tensor:
    """Flip and rotation (B, 3, 3) of the view about its centre."""
    angle = (2 * column["angle"] - 1) * math.radians(degrees)
    sign = torch.where(column["flip"] < 0.5, -1.0, 1.0)
    turn = torch.zeros(len(angle), 3, 3, device=angle.device)
    turn[:, 0, 0], turn[:, 0, 1] = sign * angle.cos(), -angle.sin()
    turn[:, 1, 0], turn[:, 1, 1] = sign * angle.sin(), angle.cos()
    turn[:, 2, 2] = 1.0
    return turn


def _sample(pixels: Tensor, theta: Tensor, size: int) -> Tensor:
    grid = F.affine_grid(theta[:, :2], [len(pixels), 3, size, size], align_corners=False)
    return F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(view: Tensor, column: dict[str, Tensor], most: float) -> Tensor:
    """Brightness, contrast and saturation, each scaled by a factor in 1 - most .. 1 + most."""
    if most == 0:
        return view

    def factor(name: str) -> Tensor:
        return (1 + most * (2 * column[name] - 1)).view(-1, 1, 1, 1)

    weights = torch.tensor(_GREY, device=view.device).view(1, 3, 1, 1)
    view = (view * factor("brightness")).clamp(0, 255)
    mean = (view * weights).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    view = torch.lerp(mean.expand_as(view), view, factor("contrast").expand_as(view)).clamp(0, 255)
    grey = (view * weights).sum(dim=1, keepdim=True)
    return torch.lerp(grey.expand_as(view), view, factor("saturation").expand_as(view)).clamp(0, 255)
