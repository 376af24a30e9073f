"""Stages of training: steps without data are the same as with, and a device's peak is found by its name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision

from inat_job.bench.training_stages import LiveTraining, peak_tflops


def live_training(slices: int) -> tuple[Any, torch.nn.Linear]:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = SimpleNamespace(optimizers=[optimiser], precision_plugin=Precision())
    module = SimpleNamespace(training_step=lambda batch, number: network(batch).square().mean())
    return LiveTraining(trainer, module, torch.ones(4, 3), 4, slices), network  # type: ignore[arg-type]


@pytest.mark.parametrize("slices", [1, 2])
def test_steps_without_data_train_like_lightning(slices: int) -> None:
    work, network = live_training(slices)
    _, other = live_training(slices)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.1)
    work.steps(4)
    for _ in range(4 // slices):
        optimiser.zero_grad()
        other(torch.ones(4, 3)).square().mean().backward()
        optimiser.step()
    assert torch.allclose(network.weight, other.weight)


def test_peak_tflops_is_found_by_the_device_name() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3") == peak_tflops("NVIDIA H200") == 989
    assert peak_tflops("NVIDIA A100-SXM4-40GB") == 312
    names = ("Tesla T4", "NVIDIA L4", "NVIDIA A10G", "Tesla V100-SXM2-16GB")
    assert [peak_tflops(name) for name in names] == [65, 121, 70, 125]
    assert peak_tflops("NVIDIA L40S") is None
    assert peak_tflops("cpu x86_64") is None
