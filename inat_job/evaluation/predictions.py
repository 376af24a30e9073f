"""The logits of whole splits, each image exactly once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from inat_job import events, signals
from inat_job.data.batches import EvalBatches
from inat_job.signals import StopFlag

Vote = Callable[[bool], Sequence[bool]]
"""Whether any rank wants to stop, asked whether this one does."""


class EvaluationProgress(Callback):
    """Shows how far an evaluation is, by its phase's name, and ends it on the stop flag."""

    def __init__(self, stop: StopFlag, phase: str, vote: Vote = lambda stop: (stop,)) -> None:
        self._stop, self._phase, self._vote = stop, phase, vote
        self._show = events.progress(phase)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._look(batch_idx, trainer.num_predict_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._look(batch_idx, trainer.num_val_batches)

    def _look(self, batch_idx: int, batches: list[Any]) -> None:
        self._show(batch_idx + 1, int(batches[0]))
        stop = self._vote(self._stop())[0]
        signals.check(lambda: stop, f"working on the phase {self._phase}")


def predict(trainer: Trainer, classifier: LightningModule, batches: EvalBatches) -> tuple[Tensor, Tensor]:
    """Logits float32 (n, classes) and labels int64 (n,), on the CPU, in the order of the batches."""
    outputs: Any = trainer.predict(classifier, dataloaders=batches)
    logits, labels = zip(*outputs, strict=True)
    return torch.cat(logits), torch.cat(labels)
