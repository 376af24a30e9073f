"""Augmentation and evaluation views: the network's input, cut out of cached squares.

What a view looks like is decided on the CPU, for all images at once: an affine map for the sampling and three colour
factors. The device only samples and recolours a batch by them.

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
VIEW_FORMAT = 2
"""The version of the code that cuts views: cached features of another version are not reused, and a resume of a run
that began with another warns. A test that compares the views of a fixed image fails when this must be raised."""

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114


@dataclass(frozen=True)
class Augmentation:
    """The strength of the training augmentation.

    `crop_scale` is the smallest area of a random crop, as a share of the image; `rotation` is in degrees to either
    side; `colour` is the largest relative change of brightness, contrast and saturation.
    """

    crop_scale: float
    rotation: float
    colour: float


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


def cut_views(pixels: Tensor, maps: Tensor, colour: Tensor | None, size: int) -> Tensor:
    """The views of a batch: float32 (B, 3, size, size) in 0..255, channels last in memory.

    `pixels` is uint8 (B, 3, S, S). They are always cut in float32: autocast would round coordinates to whole pixels.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        grid = _grid(maps, size)
        view = F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        if colour is not None:
            view = _recolour(view, colour)
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
