"""The exponential moving average of a network's weights, which is validated, tested and exported instead of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inat_job.models.strategies import Architecture, parameter_groups


class WeightAverage:
    """Averages of the parameters that train at some time of the run, and of the statistics of their batch norms.

    Batch norm's statistics are averaged like the weights and not computed again from images: that takes no pass over
    them, is exact on resume, and both averages are of the same steps. (D. Morales-Brotons et al., Exponential moving
    average of weights in deep learning, 2024, arXiv 2411.18704)

    Made on the device that trains, as training begins. `averages` are those of a checkpoint, by name.
    """

    def __init__(self, architecture: Architecture, decay: float, averages: Mapping[str, Tensor] | None = None) -> None:
        self._decay = decay
        self._tensors = _averaged(architecture)
        self._averages = [each.detach().clone() for each in self._tensors.values()]
        if averages is not None:
            for name, average in zip(self._tensors, self._averages, strict=True):
                average.copy_(averages[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after an optimiser step, counted from 0."""
        torch._foreach_lerp_(self._averages, list(self._tensors.values()), 1 - decay_at(step, self._decay))

    def swap(self) -> None:
        """Exchange weights and averages in the network; the second call undoes the first."""
        for tensor, average in zip(self._tensors.values(), self._averages, strict=True):
            tensor.data, average.data = average.data, tensor.data

    def as_dict(self) -> dict[str, Tensor]:
        """The averages by the network's names, as they live on the device."""
        return dict(zip(self._tensors, self._averages, strict=True))


def decay_at(step: int, decay: float) -> float:
    """The decay after a step, counted from 0: small at first, so that the average forgets the initial weights.

    Until `decay` is reached, about the last ninth of the steps counts (as TensorFlow's ExponentialMovingAverage).
    """
    return min(decay, (1 + step) / (10 + step))


def _averaged(architecture: Architecture) -> dict[str, Tensor]:
    """The tensors to average, by their names in the network."""
    groups = parameter_groups(architecture, lr=1.0, weight_decay=0.0)
    trained = {id(each) for group in groups for each in group["params"]}
    stored = architecture.network.state_dict().keys()  # a checkpoint has no other buffers: those are constants
    found: dict[str, Tensor] = {}
    for prefix, module in architecture.network.named_modules():
        own = {name: each for name, each in module.named_parameters(prefix, recurse=False) if id(each) in trained}
        if own:
            found |= own | {name: each for name, each in _statistics(module, prefix) if name in stored}
    return found


def _statistics(module: nn.Module, prefix: str) -> list[tuple[str, Tensor]]:
    return [(name, each) for name, each in module.named_buffers(prefix, recurse=False) if each.is_floating_point()]
