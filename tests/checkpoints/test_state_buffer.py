"""A copied training state: what was trained meanwhile is not in it, and nothing else is lost or shared."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inat_job.checkpoints import state_buffer, training_state
from inat_job.checkpoints.state_buffer import StateBuffer


def trained(steps: int = 1) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A network in channels-last layout, and its optimizer, after a few steps."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    train(network, optimizer, steps)
    return network, optimizer


def train(network: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.rand(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()


def state_of(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 1}


def bytes_of(state: dict[str, Any], path: Path) -> bytes:
    """The file of a state, at once."""
    training_state.write(state, path)
    return path.read_bytes()


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU count as a GPU's, and arrive in host memory as late as possible."""

    def send(staged: torch.Tensor, host: torch.Tensor) -> Callable[[], None]:
        def arrive() -> None:
            host.copy_(staged)

        return arrive

    monkeypatch.setattr(state_buffer, "_is_on_gpu", lambda tensor: tensor.dim() > 0)
    monkeypatch.setattr(state_buffer, "_send", send)
    reserve = StateBuffer._reserve
    monkeypatch.setattr(StateBuffer, "_reserve", lambda self, size, pinned: reserve(self, size, pinned=False))


@pytest.fixture(params=["cpu", "fake_gpu"])
def device(request: pytest.FixtureRequest) -> None:
    if request.param != "cpu":
        request.getfixturevalue(request.param)


@pytest.mark.usefixtures("device")
def test_copy_is_the_state_of_its_step_although_training_went_on(tmp_path: Path) -> None:
    network, optimizer = trained()
    expected = bytes_of(state_of(network, optimizer), tmp_path / "1.ckpt")
    write = StateBuffer().copy(state_of(network, optimizer))
    train(network, optimizer, 3)
    write(tmp_path / "1.ckpt")
    assert (tmp_path / "1.ckpt").read_bytes() == expected


@pytest.mark.usefixtures("device")
def test_memory_is_used_again(tmp_path: Path) -> None:
    buffer, (network, optimizer) = StateBuffer(), trained()
    addresses = set()
    for _ in range(3):
        train(network, optimizer, 1)
        expected = bytes_of(state_of(network, optimizer), tmp_path / "1.ckpt")
        buffer.copy(state_of(network, optimizer))(tmp_path / "1.ckpt")
        assert (tmp_path / "1.ckpt").read_bytes() == expected
        addresses.add(buffer._host.data_ptr())
    assert len(addresses) == 1


def test_memory_grows_with_the_state(tmp_path: Path) -> None:
    buffer, path = StateBuffer(), tmp_path / "1.ckpt"
    for count in (3, 1000, 10):
        buffer.copy({"state_dict": {"weight": torch.arange(count)}})(path)
        assert torch.equal(training_state.read(path)["state_dict"]["weight"], torch.arange(count))
    assert buffer._host.numel() == 8000


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.empty(0, 3),
        torch.tensor([True, False]),
        torch.rand(3, 5).bfloat16(),
        torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.rand(4, 6)[:, ::2],
        torch.rand(4, 1).expand(4, 6),
    ],
    ids=["scalar", "empty", "bool", "bf16", "channels last", "slice", "expanded"],
)
def test_copy_is_like_a_clone(tensor: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "1.ckpt"
    StateBuffer().copy({"state_dict": {"first": torch.arange(3), "it": tensor, "last": torch.arange(3)}})(path)
    found = training_state.read(path)["state_dict"]["it"]
    assert torch.equal(found, tensor)
    assert (found.dtype, found.stride()) == (tensor.dtype, tensor.clone().stride())


def test_only_host_memory_is_copied_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of another device's tensor, such as mps', is none in host memory: torch itself must copy it."""
    monkeypatch.delattr(state_buffer.ctypes, "memmove")
    with pytest.raises(NotImplementedError, match="meta tensor"):
        state_buffer._copy_to_host([torch.empty(3)], [torch.empty(3, device="meta")])


def test_tensors_that_appear_twice_are_copied_once(tmp_path: Path) -> None:
    tied, buffer = torch.rand(100), StateBuffer()
    buffer.copy({"state_dict": {"input": tied, "output": tied}})(tmp_path / "1.ckpt")
    assert buffer._host.numel() < 2 * tied.nbytes


def test_copy_keeps_the_versions_in_a_state_dict(tmp_path: Path) -> None:
    """torchvision's MNASNet cannot be restored without them."""
    state = OrderedDict(weight=torch.rand(3))
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    StateBuffer().copy({"state_dict": state})(tmp_path / "1.ckpt")
    assert training_state.read(tmp_path / "1.ckpt")["state_dict"]._metadata == {"": {"version": 2}}
