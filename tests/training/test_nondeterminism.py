"""`--deterministic` where an operation has no deterministic form: real operations of the CPU, and the CUDA one by name.

On a CPU, `put_` is one that torch refuses.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inat_job.models import five_block
from inat_job.training import nondeterminism
from tests.training.test_device_errors import PART_A, Job, cache_dir, job  # noqa: F401


def refused(values: Tensor) -> Tensor:
    """The values, by an operation that is refused."""
    out = torch.zeros(values.numel())
    out.put_(torch.arange(values.numel()), values.detach().float().flatten())
    return values


class RefusedBackward(torch.autograd.Function):
    """Leaves values as they are, and is refused in the backward pass. `saves` is whether it saves a tensor for it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, saves: bool) -> Tensor:
        if saves:
            ctx.save_for_backward(values)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        _ = ctx.saved_tensors
        return refused(gradient), None


class Layer(nn.Module):
    def __init__(self, work: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work

    def forward(self, values: Tensor) -> Tensor:
        return self.work(values)


WORK = {
    "forward": refused,
    "backward": lambda values: RefusedBackward.apply(values, False),
    "backward-saved": lambda values: RefusedBackward.apply(values, True),
}


class Inner(nn.Module):
    """A block whose own code calls the operation, between two layers that do not."""

    def __init__(self, work: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.work = nn.Linear(4, 4), nn.Linear(4, 4), work

    def forward(self, values: Tensor) -> Tensor:
        return self.second(self.work(self.first(values).relu()))


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("work", ["backward", "backward-saved"])
def test_layer_of_a_refused_backward_pass(work: str, deterministic: None) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), Layer(WORK[work]), nn.Flatten(), nn.Linear(4, 2))
    images = torch.ones(3, 4)

    def loss() -> Tensor:
        return F.cross_entropy(network(images), torch.tensor([0, 1, 0]))

    with pytest.raises(RuntimeError, match=r"put_ does not have a deterministic implementation"):
        loss().backward()
    assert nondeterminism._layer_in_backward(network, loss) == "2"
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())


def test_block_whose_own_code_is_refused_in_the_backward_pass(deterministic: None) -> None:
    network = nn.Sequential(Inner(WORK["backward-saved"]), nn.Linear(4, 2))
    images = torch.ones(3, 4)
    assert nondeterminism._layer_in_backward(network, lambda: network(images).sum()) == "0"


def test_no_layer_where_the_loss_is_refused(deterministic: None) -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    images = torch.ones(3, 4)
    assert nondeterminism._layer_in_backward(network, lambda: WORK["backward"](network(images)).sum()) is None


@pytest.mark.parametrize("work", WORK)
def test_run_names_layer_and_operation(job: Job, work: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pooling = five_block._global_average
    monkeypatch.setattr(five_block, "_global_average", lambda: pooling().append(Layer(WORK[work])))
    try:
        ended = job(*PART_A, "--deterministic", "--pooling", "gap")
    finally:
        torch.use_deterministic_algorithms(False)
    assert ended == (
        78,
        ended.stdout,
        "Error: --deterministic cannot be kept: put_ in the layer pooling.2 (Layer) has no deterministic form on this "
        "device. Leave --deterministic out, or choose another network.",
    )


@pytest.mark.soak
def test_run_is_as_before_where_nothing_is_refused(job: Job) -> None:  # noqa: F811
    try:
        assert job(*PART_A, "--deterministic").code == 0
    finally:
        torch.use_deterministic_algorithms(False)
