"""The logits of whole splits, each picture exactly once."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from inat_job import events, signals
from inat_job.data.batches import EvalBatches
from inat_job.signals import StopFlag


class TestWatch(Callback):
    """Shows how far an evaluation is and ends it on the stop flag."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._show = events.progress("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop.install()  # Lightning put its own handler in place just before

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._show(batch_idx + 1, int(trainer.num_predict_batches[0]))
        signals.check(self._stop, "testing")


def predict(trainer: Trainer, classifier: LightningModule, batches: EvalBatches) -> tuple[Tensor, Tensor]:
    """Logits float32 (n, classes) and labels int64 (n,), on the CPU, in the order of the batches."""
    outputs: Any = trainer.predict(classifier, dataloaders=batches)
    logits, labels = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(labels)
