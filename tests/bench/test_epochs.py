"""The steps without data are those of training: the same losses and weights, in slices too."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision

from inat_job.bench.epochs import Live


def live(slices: int) -> tuple[Any, torch.nn.Linear]:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = SimpleNamespace(optimizers=[optimiser], precision_plugin=Precision())
    module = SimpleNamespace(training_step=lambda batch, number: network(batch).square().mean())
    return Live(trainer, module, torch.ones(4, 3), 4, slices), network  # type: ignore[arg-type]


@pytest.mark.parametrize("slices", [1, 2])
def test_as_many_optimiser_steps_as_batches_over_slices(slices: int) -> None:
    work, network = live(slices)
    _, other = live(slices)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.1)
    work.steps(4)
    for _ in range(4 // slices):
        optimiser.zero_grad()
        other(torch.ones(4, 3)).square().mean().backward()
        optimiser.step()
    assert torch.allclose(network.weight, other.weight)
