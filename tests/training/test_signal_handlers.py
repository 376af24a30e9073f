"""A signal reaches our flag in every stage of a trainer: Lightning's own handler would talk to the other ranks."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from inat_job.settings import TrainSettings
from inat_job.training import execution
from inat_job.training.trainer import make_trainer


class Network(LightningModule):
    """The least that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.layer(batch)

    def predict_step(self, batch: Tensor, index: int) -> Tensor:
        return self.layer(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


class Live(Callback):
    """Whose handler of SIGTERM is live, by each stage that Lightning calls."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def _look(self, stage: str) -> None:
        self.seen[stage] = signal.getsignal(signal.SIGTERM)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._look("setup")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look("train start")

    def on_train_batch_end(self, *_: Any) -> None:
        self._look("train")

    def on_validation_batch_end(self, *_: Any) -> None:
        self._look("validate")

    def on_predict_batch_end(self, *_: Any) -> None:
        self._look("predict")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._look("teardown")


def ours(number: int, frame: object) -> None:
    """A handler that this test knows again."""


Do = Callable[[Trainer, Network, DataLoader[Tensor]], object]
STAGES: list[tuple[Do, set[str]]] = [
    (lambda trainer, *given: trainer.fit(*given, given[-1]), {"setup", "train start", "train", "validate", "teardown"}),
    (lambda trainer, *given: trainer.validate(*given), {"setup", "validate", "teardown"}),
    (lambda trainer, *given: trainer.predict(*given), {"setup", "predict", "teardown"}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("do", "stages"), STAGES, ids=["fit", "validate", "predict"])
def test_our_signal_handler_stays_in_every_stage(do: Do, stages: set[str]) -> None:
    before, live = signal.signal(signal.SIGTERM, ours), Live()
    settings = TrainSettings(accelerator="cpu", precision="fp32", epochs=1)
    try:
        trainer = make_trainer(execution.decide(settings, None), settings, [live])
        do(trainer, Network(), DataLoader(torch.ones(4, 2), batch_size=2))  # type: ignore[arg-type]
        assert live.seen == dict.fromkeys(stages, ours)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
