"""What the decisions on the arithmetic need while training: cuDNN's search, and whether the network was compiled."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from inat_job import events
from inat_job.data.features import FeatureBatch
from inat_job.training.execution import Execution


class ExecutionCallback(Callback):
    """Lets cuDNN search for its fastest algorithms in training alone, and logs what torch.compile made of a first step.

    That is the first on images: what trains on cached features is not compiled.

    The search takes seconds for each new shape of a batch, which training earns back and an evaluation does not.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._frames: tuple[int, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._search(True)
        if self._execution.compile:
            self._frames = _compiled_frames()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._frames and not isinstance(batch, FeatureBatch):
            total, ok = (now - before for now, before in zip(_compiled_frames(), self._frames, strict=True))
            _report_compilation(total, ok, self._execution.compile_mode)
            self._frames = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._search(False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._search(trainer.state.fn == TrainerFn.FITTING)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._search(False)
        if self._frames:
            events.warn("Nothing was compiled: all steps trained on cached features (--feature-views 0 has none).")

    def on_exception(self, *_: Any) -> None:
        self._search(False)

    def _search(self, training: bool) -> None:
        torch.backends.cudnn.benchmark = training and self._execution.cudnn_benchmark


def _compiled_frames() -> tuple[int, int]:
    """The functions that torch.compile has seen in this process, and those of them that it has compiled.

    A graph break divides a function into several.
    """
    from torch._dynamo.utils import counters  # takes a second, unless the network was compiled

    return counters["frames"]["total"], counters["frames"]["ok"]


def _report_compilation(total: int, ok: int, mode: str) -> None:
    if total == ok > 0:
        events.emit("compiled", mode=mode, graphs=ok)
        return
    what = f"compiled only in part ({ok} of {total} functions)" if ok else "not compiled"
    why = "torch's warnings above say why" if total else "this torch did not try to"
    events.warn(f"The network is {what}, and training goes on without: {why}.")
