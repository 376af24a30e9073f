"""The logits of whole splits, each image exactly once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from inat_job import events, signals
from inat_job.data.batches import EvalBatches
from inat_job.signals import StopFlag

AnyRank = Callable[[bool], Sequence[bool]]
"""From whether this rank wants to stop to whether any does, in a sequence of one."""


class EvaluationProgress(Callback):
    """Reports the progress of an evaluation under its phase's name, and ends it on the stop flag."""

    def __init__(self, stop: StopFlag, phase: str, any_rank: AnyRank = lambda stop: (stop,)) -> None:
        self._stop, self._phase, self._any_rank = stop, phase, any_rank
        self._progress = events.progress(phase, transient=phase == "validate")  # as after each epoch

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress(0, sum(map(int, trainer.num_predict_batches)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress(0, sum(map(int, trainer.num_val_batches)))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._report(batch_idx, trainer.num_predict_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._report(batch_idx, trainer.num_val_batches)

    def _report(self, batch_idx: int, batches: list[Any]) -> None:
        self._progress(batch_idx + 1, int(batches[0]))
        stop = self._any_rank(self._stop())[0]
        signals.check(lambda: stop, f"working on the phase {self._phase}")


def predict(trainer: Trainer, classifier: LightningModule, batches: EvalBatches) -> Tensor:
    """Logits float32 (n, classes), on the CPU, in the order of the batches, padding included."""
    outputs: Any = trainer.predict(classifier, dataloaders=batches)
    return torch.cat(outputs)
