"""The size of a network: its parameters, and the multiply-adds that one image takes."""

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

MACS_PER_S = {"cpu": 1e11, "mps": 1e12, "cuda": 1e14}
"""Multiply-adds that a device does in a network's layers: orders of magnitude, for choices between far extremes."""


@dataclass(frozen=True)
class NetworkSize:
    """`macs` are multiply-adds for one image, `outputs` the numbers that come of it."""

    parameters: int
    trainable_parameters: int
    macs: int
    outputs: int

    def as_dict(self) -> dict[str, int]:
        """By the report's names."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "outputs"}


def network_size(network: nn.Module, image_size: int) -> NetworkSize:
    """Count on one image (1, 3, image_size, image_size) uint8, on the meta device; `network` stays as it is.

    Multiply-adds of convolutions and matrix products are counted, those of attention among them; biases, norms,
    activations and pooling are not. So are the figures that torchvision gives with its weights. What the network
    itself raises for images of this size goes through.
    """
    parameters = list(network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = _shape_of(network)(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device="meta"))
    return NetworkSize(
        parameters=sum(each.numel() for each in parameters),
        trainable_parameters=sum(each.numel() for each in parameters if each.requires_grad),
        macs=counter.get_total_flops() // 2,
        outputs=output.numel(),
    )


def _shape_of(network: nn.Module) -> nn.Module:
    """A copy in eval mode without the numbers. The tensors are replaced while copying, so that none is doubled."""
    empty = {id(each): nn.Parameter(torch.empty_like(each, device="meta"), False) for each in network.parameters()}
    buffers = {id(each): torch.empty_like(each, device="meta") for each in network.buffers()}
    return copy.deepcopy(network, memo={**empty, **buffers}).eval()
