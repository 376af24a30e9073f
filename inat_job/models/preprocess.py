"""The first layer of every network: uint8 pixels to normalised floats, so that no caller prepares them differently."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocess(nn.Module):
    """(B, 3, H, W) uint8 or float, 0..255, to normalised float32 of the same shape and memory format.

    `mean` and `std` are those of pixels in 0..1, by default ImageNet's (torchvision's `ImageClassification`). They are
    buffers, so that they travel with the weights; the state dict holds them in units of 0..255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", _channels(mean))
        self.register_buffer("std", _channels(std))

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take over the statistics that a set of pretrained weights was trained with."""
        self.mean.copy_(_channels(mean))
        self.std.copy_(_channels(std))

    def forward(self, pixels: Tensor) -> Tensor:
        # float32 by type promotion: no copy in between. Autocast lowers it at the first convolution.
        return (pixels - self.mean) / self.std


def _channels(values: Sequence[float]) -> Tensor:
    return (255 * torch.tensor(values, dtype=torch.float32)).view(1, 3, 1, 1)
