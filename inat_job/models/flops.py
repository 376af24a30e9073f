"""The size of a network: its parameters, and the multiply-adds (half the FLOPs) of one image."""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

MACS_PER_S = {"cpu": 1e11, "mps": 1e12, "cuda": 1e14}
"""Multiply-adds per second that a device reaches in a network's layers: orders of magnitude, for coarse choices."""


@dataclass(frozen=True)
class NetworkSize:
    """`macs` are the multiply-adds of one image, `outputs` the number of values it results in."""

    parameters: int
    trainable_parameters: int
    macs: int
    outputs: int

    def as_dict(self) -> dict[str, int]:
        """The report's fields."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "outputs"}


def network_size(network: nn.Module, image_size: int) -> NetworkSize:
    """Measure on one image (1, 3, image_size, image_size), uint8 on the meta device; `network` is not changed.

    Multiply-adds of convolutions and matrix products (attention included) are counted; biases, norms, activations and
    pooling are not, like in torchvision's own figures. Raises what the network raises for images of this size.
    """
    parameters = list(network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = meta_copy(network)(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device="meta"))
    return NetworkSize(
        parameters=sum(each.numel() for each in parameters),
        trainable_parameters=sum(each.numel() for each in parameters if each.requires_grad),
        macs=counter.get_total_flops() // 2,
        outputs=output.numel(),
    )


def meta_copy(network: nn.Module) -> nn.Module:
    """A copy on the meta device in eval mode. Tensors are replaced while copying, so no memory is doubled."""
    empty = {id(each): nn.Parameter(torch.empty_like(each, device="meta"), False) for each in network.parameters()}
    buffers = {id(each): torch.empty_like(each, device="meta") for each in network.buffers()}
    return copy.deepcopy(network, memo={**empty, **buffers}).eval()
