"""cuDNN's search is on in training alone, and the log says what torch.compile made of the first step."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from inat_job.data.features import FeatureBatch
from inat_job.settings import TrainSettings
from inat_job.training import execution
from inat_job.training.trainer import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on loaders without workers


class Searching(LightningModule):
    """A small network that notes in which of its steps cuDNN may search."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        self.network.register_full_backward_hook(lambda *_: self._look("backward"))
        self.fails = fails
        self.seen: dict[str, set[bool]] = {}

    def _look(self, step: str) -> None:
        self.seen.setdefault(step, set()).add(torch.backends.cudnn.benchmark)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self._look("train")
        if self.fails:
            raise RuntimeError("no more")
        return self.network(batch).sum()

    def validation_step(self, batch: Tensor, index: int) -> None:
        self._look("validate")

    def predict_step(self, batch: Tensor, index: int) -> Tensor:
        self._look("predict")
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class Compiled(LightningModule):
    """A small network with a training step, compiled if `decide` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.network: nn.Module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss: Tensor = self.network(batch).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(**changes: Any) -> Trainer:
    settings = TrainSettings(epochs=2, accelerator="cpu", precision="fp32")
    return make_trainer(dataclasses.replace(execution.decide(settings, None), **changes), settings, [])


def images() -> Any:
    return DataLoader(torch.ones(4, 2), batch_size=2)


@pytest.mark.parametrize("decided", [True, False])
def test_cudnn_searches_in_training_alone(decided: bool) -> None:
    module = Searching()
    trainer(cudnn_benchmark=decided).fit(module, images(), images())
    assert module.seen == {"train": {decided}, "backward": {decided}, "validate": {False}}
    trainer(cudnn_benchmark=decided).validate(module, images(), verbose=False)
    trainer(cudnn_benchmark=decided).predict(module, images())
    assert (module.seen["validate"], module.seen["predict"]) == ({False}, {False})


def test_cudnn_does_not_search_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="no more"):
        trainer(cudnn_benchmark=True).fit(Searching(fails=True), images())
    assert torch.backends.cudnn.benchmark is False


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def fit_compiled(network: nn.Module | None = None) -> None:
    module = Compiled()
    module.network = network or module.network
    torch.compiler.reset()
    execution.compile_in_place(module.network)
    trainer(compile=True).fit(module, images())


@pytest.mark.soak
def test_log_says_that_the_step_was_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    fit_compiled()
    [line] = [each for each in logged(capsys) if each["event"] in ("compiled", "warning")]
    assert (line["event"], line["mode"], line["graphs"]) == ("compiled", "default", 1)


def fails(*given: Any, **options: Any) -> Any:
    raise RuntimeError("the compiler is broken")


def test_log_says_that_the_step_was_not_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fails)
    fit_compiled()
    [line] = [each for each in logged(capsys) if each["event"] in ("compiled", "warning")]
    assert "The network is not compiled" in line["message"]


def test_cached_features_are_not_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    class OnFeatures(Compiled):
        def training_step(self, batch: FeatureBatch, index: int) -> Tensor:
            return self.network.forward(batch.features).sum()

    module = OnFeatures()
    torch.compiler.reset()
    execution.compile_in_place(module.network)
    batches = [FeatureBatch(torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))] * 2
    trainer(compile=True).fit(module, DataLoader(batches, batch_size=None))
    [line] = [each for each in logged(capsys) if each["event"] in ("compiled", "warning")]
    assert "all steps trained on cached features" in line["message"]


@pytest.mark.soak
def test_uncompiled_backward_pass_is_an_uncompiled_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor.graph import GraphLowering

    right = GraphLowering.compile_to_module
    monkeypatch.setattr(GraphLowering, "compile_to_module", lambda self: fails() if self.is_backward else right(self))
    with torch._inductor.config.patch(force_disable_caches=True):
        fit_compiled()
    [line] = [each for each in logged(capsys) if each["event"] in ("compiled", "warning")]
    assert "The network is not compiled" in line["message"]


class Divided(nn.Module):
    """What the compiler handles in two parts; `fails` breaks it in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, batch: Tensor) -> Tensor:
        hidden = self.first(batch)
        torch._dynamo.graph_break()
        logits: Tensor = self.second(hidden)
        return logits


@pytest.mark.soak
def test_log_says_that_the_step_was_compiled_in_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor import compile_fx

    right, calls = compile_fx.compile_fx, []

    def fails_later(*given: Any, **options: Any) -> Any:
        calls.append(1)
        return right(*given, **options) if len(calls) == 1 else fails()

    monkeypatch.setattr(compile_fx, "compile_fx", fails_later)
    fit_compiled(Divided())
    [line] = [each for each in logged(capsys) if each["event"] in ("compiled", "warning")]
    assert "The network is compiled only in part (1 of 2 functions)" in line["message"]
