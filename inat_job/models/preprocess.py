"""The first layer of every network: uint8 pixels to normalised floats, so that every caller prepares them alike."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocess(nn.Module):
    """Pixels (B, 3, H, W), uint8 or float in 0..255, to normalised float32 of the same shape and memory format.

    Mean and standard deviation are those of ImageNet (torchvision's `ImageClassification`) until others are set. They
    are buffers, saved with the weights; the state dict holds them in units of 0..255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", _channels(IMAGENET_MEAN))
        self.register_buffer("std", _channels(IMAGENET_STD))

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the pixel statistics, in 0..1, that pretrained weights were trained with."""
        self.mean.copy_(_channels(mean))
        self.std.copy_(_channels(std))

    def forward(self, pixels: Tensor) -> Tensor:
        # float32 by type promotion, without an intermediate copy. Autocast lowers it at the first convolution.
        return (pixels - self.mean) / self.std


def _channels(values: Sequence[float]) -> Tensor:
    return (255 * torch.tensor(values, dtype=torch.float32)).view(1, 3, 1, 1)
