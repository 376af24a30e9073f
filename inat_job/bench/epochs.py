"""Whole epochs as the job trains them, and by turns with each the same steps without data: the rate that bounds it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from inat_job.bench.measurement import EPOCH, PICTURES, Measured, seconds, settle
from inat_job.models.classifier import Classifier


@dataclass(frozen=True)
class Live:
    """A network in the middle of training: everything is on the device and in the precision of the run.

    `batch` is a training batch on the device; `images` are those of it, `slices` the batches of an optimiser step.
    """

    trainer: Trainer
    classifier: Classifier
    batch: Any
    images: int
    slices: int

    def loss(self) -> torch.Tensor:
        """One forward pass as in training."""
        with self.trainer.precision_plugin.train_step_context():
            return self.classifier.training_step(self.batch, 0)

    def steps(self, batches: int) -> None:
        """Train on as many batches: forward, backward, optimiser, and nothing that has to do with data.

        Gradients are cleared between forward and backward, as Lightning does it: to clear them before is slower by a
        seventh for a small network on a CPU, and a limit must not be below what is held against it.
        """
        optimiser = self.trainer.optimizers[0]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None) or torch.amp.GradScaler(enabled=False)
        for number in range(batches):
            loss = self.loss() / self.slices
            if number % self.slices == 0:
                optimiser.zero_grad()
            scaler.scale(loss).backward()
            if (number + 1) % self.slices == 0:
                scaler.step(optimiser)
                scaler.update()


Between = Callable[[], float]
"""Something else that is measured by turns with the epochs; returns its images a second."""


@dataclass
class Laps(Callback):
    """Times every epoch of a fit but the first, which warms up, and after each of them the steps without data.

    `others` are measured after them by turns too. `at_end` is called once training is over and all is still in place.
    """

    images: int
    slices: int
    others: dict[str, Between] = field(default_factory=dict)
    at_end: Callable[[Live], None] = lambda live: None
    epochs: list[float] = field(default_factory=list)
    free: list[float] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._batch: Any = None
        self._begun = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settle()
        self._begun = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0:
            self._batch = batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        settle()
        took, warm = time.perf_counter() - self._begun, trainer.current_epoch > 0
        batches = int(trainer.num_training_batches)
        live = self._live(trainer, pl_module)
        free = seconds(lambda: live.steps(batches if warm else min(batches, 3 * self.slices)))
        others = {name: between() for name, between in self.others.items()}
        if warm:
            self.epochs.append(batches * self.images / took)
            self.free.append(batches * self.images / free)
            for name, rate in others.items():
                self.rates.setdefault(name, []).append(rate)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at_end(self._live(trainer, pl_module))

    def _live(self, trainer: Trainer, module: LightningModule) -> Live:
        assert isinstance(module, Classifier)
        return Live(trainer, module, self._batch, self.images, self.slices)

    def measured(self) -> list[Measured]:
        """The step, the epoch, and the epoch over each of the others."""
        free, epochs = tuple(self.free), tuple(self.epochs)
        if not epochs:
            return []
        found = [
            Measured("step without data", PICTURES, free, role=EPOCH),
            Measured("training epoch", PICTURES, epochs, "step without data", free),
        ]
        for name, rates in self.rates.items():
            found.append(Measured(name, PICTURES, tuple(rates)))
            ratios = tuple(ours / other for ours, other in zip(epochs, rates, strict=True))
            found.append(Measured(f"training epoch over {name}", "times", ratios))
        return found
