import copy

import pytest
import torch
from torch import Tensor, nn

from inat_job.models.muon import Muon, orthogonal


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 2))
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(net: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimiser.zero_grad()
        images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        net(images).square().mean().backward()
        optimiser.step()


def groups(net: nn.Module) -> list[dict[str, object]]:
    return [{"params": list(net.parameters()), "lr": 1e-2, "weight_decay": 0.1}]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_singular_values_are_near_one_and_the_singular_vectors_stay(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(orthogonal(matrix * 1e6, dtype), full_matrices=False)
    assert 0.5 < values.min() < values.max() < 1.3
    exact_left, _, exact_right = torch.linalg.svd(matrix, full_matrices=False)
    exact = exact_left @ exact_right
    assert torch.nn.functional.cosine_similarity((left * values @ right).flatten(), exact.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("decades", [2, 4, 6])
def test_small_singular_values_are_raised_but_none_above_the_rest(decades: int, dtype: torch.dtype) -> None:
    left, _, right = torch.linalg.svd(torch.randn(64, 288, generator=torch.Generator().manual_seed(0)), False)
    values = 10.0 ** -torch.linspace(0, decades, 64)
    found = orthogonal(left * values @ right, dtype)
    exact = orthogonal(left * values @ right, torch.float64)
    assert torch.linalg.matrix_norm(found, 2) < 1.3
    assert (found - exact).norm() < 0.2 * exact.norm()


def test_zero_gradient_is_no_step_but_of_weight_decay() -> None:
    weight = nn.Parameter(torch.ones(2, 4, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.5}], torch.bfloat16).step()
    assert torch.allclose(weight, torch.full_like(weight, 0.95))


def test_all_but_hidden_convolutions_step_as_by_adamw() -> None:
    ours, theirs = network(), network()
    before = theirs[2].weight.detach().clone()
    train(ours, Muon(groups(ours), torch.float32), range(1))
    train(theirs, torch.optim.AdamW(groups(theirs), fused=True), range(1))
    different = {
        name
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    assert different == {"2.weight"}
    moved: Tensor = ours[2].weight - before * (1 - 1e-2 * 0.1)
    assert 0.5 < moved.square().mean().sqrt() / (0.2 * 1e-2) < 1.3, "the root mean square is that of AdamW's updates"


def test_gradients_are_there_after_a_step() -> None:
    net = network()
    train(net, Muon(groups(net), torch.float32), range(1))
    assert all(each.grad is not None for each in net.parameters())


def test_loaded_state_continues_to_the_bit() -> None:
    straight, resumed = network(), network()
    train(straight, Muon(groups(straight), torch.float32), range(4))
    first = Muon(groups(resumed), torch.float32)
    train(resumed, first, range(2))
    state = copy.deepcopy(first.state_dict())
    second = Muon(groups(resumed), torch.float32)
    second.load_state_dict(state)
    train(resumed, second, range(2, 4))
    assert all(torch.equal(one, other) for one, other in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_frozen_convolution_stays() -> None:
    net = network()
    net[2].requires_grad_(False)
    before = net[2].weight.clone()
    train(net, Muon(groups(net), torch.float32), range(2))
    assert torch.equal(net[2].weight, before)
