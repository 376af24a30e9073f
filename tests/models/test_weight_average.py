"""The moving average of weights: what it averages, with which decay, and its exchange with the weights."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.models.strategies import Architecture
from inat_job.models.weight_average import WeightAverage, decay_at


def architecture(strategy: str = "full") -> Architecture:
    spec = FiveBlockSpec((2,) * 5, (3,) * 5, "relu", 4, "gap", True, 0.0, 32, 3)
    return dataclasses.replace(build_five_block(spec), strategy=strategy)


def move(network: torch.nn.Module) -> None:
    """Change all weights and statistics, as a step does."""
    with torch.no_grad():
        for each in [*network.parameters(), *network.buffers()]:
            each.add_(1 if each.dtype == torch.int64 else torch.rand_like(each))


@given(st.integers(0, 10**7), st.floats(0, 1))
def test_decay_rises_to_its_value(step: int, decay: float) -> None:
    now, later = decay_at(step, decay), decay_at(step + 1, decay)
    assert 0 <= now <= later <= decay
    assert now == decay or step + 1 == pytest.approx(now * (step + 10))


def test_average_of_steps() -> None:
    network = (made := architecture()).network
    average = WeightAverage(made, 0.3)
    expected = {name: each.double() for name, each in average.as_dict().items()}
    for step in range(6):
        move(network)
        average.update(step)
        state, decay = network.state_dict(), decay_at(step, 0.3)
        expected = {name: decay * each + (1 - decay) * state[name] for name, each in expected.items()}
    for name, each in average.as_dict().items():
        assert torch.allclose(each.double(), expected[name], rtol=1e-5), name
    floats = {name for name, each in network.state_dict().items() if each.is_floating_point()}
    assert set(expected) == {name for name in floats if not name.startswith("preprocess.")}


def test_frozen_stages_are_not_held() -> None:
    names = WeightAverage(architecture("head"), 0.9).as_dict()
    assert set(names) == {f"{layer}.{kind}" for layer in ("dense", "output") for kind in ("weight", "bias")}


def test_buffers_that_no_checkpoint_has_are_not_averaged() -> None:
    made = architecture()
    made.network.get_submodule("blocks.0.conv").register_buffer("constant", torch.ones(2), persistent=False)
    assert set(WeightAverage(made, 0.9).as_dict()) <= set(made.network.state_dict())


def test_swap_exchanges_and_restores() -> None:
    network = (made := architecture()).network
    average = WeightAverage(made, 0.9)
    move(network)
    raw = {name: each.clone() for name, each in network.state_dict().items()}
    averages = {name: each.clone() for name, each in average.as_dict().items()}
    average.swap()
    assert all(torch.equal(network.state_dict()[name], each) for name, each in averages.items())
    average.swap()
    assert all(torch.equal(network.state_dict()[name], each) for name, each in raw.items())
    assert all(torch.equal(average.as_dict()[name], each) for name, each in averages.items())
    again = WeightAverage(made, 0.9, average.as_dict())
    assert all(torch.equal(again.as_dict()[name], each) for name, each in averages.items())
