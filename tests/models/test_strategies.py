"""Fine-tuning strategies: what trains at which epoch, and the optimiser's groups."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from inat_job.models.backbones import build_backbone
from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.models.strategies import (
    Architecture,
    apply_strategy,
    has_prefix,
    parameter_groups,
    trainable_stage_count,
    trainable_stages,
)

STRATEGIES = ("head", "last-k", "gradual", "full", "lp-ft")


SPEC = FiveBlockSpec((4,) * 5, (3,) * 5, "relu", 8, "gap", True, 0.2, 32, 3)


def _network(strategy: str, last_k: int = 1, layer_decay: float = 0.5) -> Architecture:
    """Part A's network, which has stages like a backbone and trains quickly."""
    return dataclasses.replace(build_five_block(SPEC), strategy=strategy, last_k=last_k, layer_decay=layer_decay)


def _train(architecture: Architecture, epochs: int, steps: int = 2) -> None:
    optimiser = torch.optim.AdamW(parameter_groups(architecture, lr=1e-3, weight_decay=0.1))
    for epoch in range(epochs):
        apply_strategy(architecture, trainable_stages(architecture, epoch, epochs))
        for _ in range(steps):
            loss = F.cross_entropy(architecture.network(torch.rand(4, 3, 32, 32) * 255), torch.tensor([0, 1, 2, 0]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _changed(architecture: Architecture, before: dict[str, torch.Tensor]) -> set[str]:
    now = architecture.network.state_dict()
    return {name for name, each in now.items() if not torch.equal(each, before[name])}


def _state(architecture: Architecture) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in architecture.network.state_dict().items()}


def test_head_strategy_changes_only_the_head():
    architecture = dataclasses.replace(build_backbone("resnet18", 3, 32), strategy="head")
    before = _state(architecture)
    _train(architecture, epochs=2, steps=1)
    assert _changed(architecture, before) == {"backbone.fc.weight", "backbone.fc.bias"}


def test_last_k_changes_only_the_last_stages_and_their_buffers():
    architecture = _network("last-k", last_k=2)
    before = _state(architecture)
    _train(architecture, epochs=1)
    trained = ("blocks.3", "blocks.4", "dense", "output")
    assert _changed(architecture, before) == {name for name in before if has_prefix(name, trained)}


def test_full_strategy_changes_everything_but_the_preprocessing():
    architecture = _network("full")
    before = _state(architecture)
    _train(architecture, epochs=1)
    assert set(before) - _changed(architecture, before) == {"preprocess.mean", "preprocess.std"}


def test_gradual_strategy_unfreezes_stages_from_the_last():
    architecture = _network("gradual")
    unfrozen = []
    for epoch in range(12):
        apply_strategy(architecture, trainable_stages(architecture, epoch, 12))
        learning = [name for name, each in architecture.network.named_parameters() if each.requires_grad]
        unfrozen.append(sum(any(has_prefix(name, stage) for name in learning) for stage in architecture.stages))
        training = [name for name, each in architecture.network.named_modules() if each.training]
        for stage in architecture.stages[: 5 - unfrozen[-1]]:
            assert not any(has_prefix(name, stage) for name in training)
        for stage in architecture.stages[5 - unfrozen[-1] :]:
            assert all(prefix in training for prefix in stage)
    assert unfrozen == [0, 0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5]


def test_apply_strategy_does_not_depend_on_earlier_modes():
    architecture = _network("full")
    apply_strategy(architecture, 5)
    apply_strategy(architecture, 1)
    architecture.network.eval()
    apply_strategy(architecture, 3)
    fresh = _network("full")
    apply_strategy(fresh, 3)
    for one, other in zip(architecture.network.modules(), fresh.network.modules(), strict=True):
        assert one.training == other.training
    for one, other in zip(architecture.network.parameters(), fresh.network.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_parameter_groups_hold_each_trained_parameter_once(strategy: str):
    architecture = _network(strategy, last_k=2)
    grouped = [id(each) for group in parameter_groups(architecture, lr=1, weight_decay=1) for each in group["params"]]
    ever: set[int] = set()
    for epoch in range(10):
        apply_strategy(architecture, trainable_stages(architecture, epoch, 10))
        ever |= {id(each) for each in architecture.network.parameters() if each.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == ever


def test_parameter_groups_are_the_same_at_every_epoch():
    architecture = _network("gradual")

    def groups(epoch: int) -> list[list[int]]:
        apply_strategy(architecture, trainable_stages(architecture, epoch, 10))
        return [list(map(id, group["params"])) for group in parameter_groups(architecture, lr=1, weight_decay=1)]

    assert groups(0) == groups(4) == groups(9)


def test_vectors_have_no_weight_decay_and_earlier_stages_a_lower_rate():
    architecture = _network("gradual", layer_decay=0.5)
    names = {id(each): name for name, each in architecture.network.named_parameters()}
    rates = {}
    for group in parameter_groups(architecture, lr=0.1, weight_decay=0.01):
        for each in group["params"]:
            assert group["weight_decay"] == (0.01 if each.ndim > 1 else 0.0)
            rates[names[id(each)]] = group["lr"]
    assert rates["output.weight"] == rates["dense.bias"] == 0.1
    assert rates["blocks.4.batch_norm.bias"] == 0.05
    assert rates["blocks.0.conv.weight"] == pytest.approx(0.1 * 0.5**5)


def test_last_k_trains_at_one_learning_rate():
    groups = parameter_groups(_network("last-k", last_k=3), lr=0.1, weight_decay=0.01)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.01), (0.1, 0.0)]


def test_after_a_probe_all_rates_are_a_tenth():
    after, without = (
        parameter_groups(_network(strategy, layer_decay=0.5), lr=0.1, weight_decay=0.01)
        for strategy in ("lp-ft", "full")
    )
    assert [group["lr"] for group in after] == pytest.approx([0.1 * group["lr"] for group in without])
    assert [group["weight_decay"] for group in after] == [group["weight_decay"] for group in without]


@given(st.sampled_from(STRATEGIES), st.integers(0, 12), st.integers(1, 20), st.integers(1, 60))
def test_trainable_stages_never_decrease(strategy: str, n_stages: int, last_k: int, epochs: int):
    counts = [trainable_stage_count(strategy, n_stages, last_k, epoch, epochs) for epoch in range(epochs)]
    assert all(0 <= before <= after <= n_stages for before, after in pairwise([counts[0], *counts]))
    if strategy == "gradual":
        assert counts[0] == 0
        assert epochs == 1 or counts[-1] == n_stages
        assert epochs < 2 * n_stages or all(after - before <= 1 for before, after in pairwise(counts))


@pytest.mark.parametrize(("strategy", "lacking"), [("last-k", ()), ("full", ()), ("full", ("1.bias", "0.bias"))])
def test_frozen_batch_norm_keeps_what_weights_brought(strategy: str, lacking: tuple[str, ...]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    found = Architecture("x", network, (("0", "1"),), ("3",), strategy=strategy, freeze_batch_norm=True)
    found = dataclasses.replace(found, lacking=lacking)
    apply_strategy(found, 1)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    optimiser = torch.optim.SGD(parameter_groups(found, lr=0.1, weight_decay=0.1))
    network(torch.randn(5, 3, 4, 4)).square().sum().backward()
    optimiser.step()
    same = {name for name, each in network.state_dict().items() if torch.equal(each, before[name])}
    assert same == {name for name in before if name.startswith("1.") and not lacking}
