"""The LightningModule of both parts: the training, validation and prediction steps, and the optimiser.

Lightning's trainer runs the training loop (training/trainer.py); `training_step` is what it does with one batch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from inat_job import events
from inat_job.data.augment import cut_views
from inat_job.data.batches import IGNORED, Batch
from inat_job.data.features import FeatureBatch
from inat_job.data.mixing import mix_views, of_neighbours
from inat_job.errors import ConflictError
from inat_job.models.frozen_stem import StemAndTail, cut_stem
from inat_job.models.muon import Muon, is_hidden
from inat_job.models.schedule import Schedule
from inat_job.models.strategies import Architecture, apply_strategy, parameter_groups, trainable_stages
from inat_job.models.weight_average import WeightAverage
from inat_job.settings import TrainSettings

_NETWORK = "network."
"""Prefix of the network's names in a checkpoint."""
_RAW = "raw_weights"
"""What a checkpoint has besides the averages, which are in its state dict: the weights that training continues."""
MATRIX_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}
"""What matrices are multiplied in, by the trainer's precision: what the device is fast at."""


class Classifier(LightningModule):
    """A network with its recipe.

    `loss` is the last batch's, and `finite` says whether all so far were finite, both on the device; `val_loss` and
    `val_accuracy` are the last validation's. `schedule`'s end may move while it trains.
    """

    def __init__(
        self,
        architecture: Architecture,
        train: TrainSettings,
        steps_per_epoch: int,
        class_weights: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.network = architecture.network
        self._architecture = architecture
        self._train = train
        self.schedule = Schedule(train.epochs * steps_per_epoch, train.warmup)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("_class_weights", weights, persistent=False)
        self.loss = torch.tensor(float("nan"))
        self.finite = torch.tensor(True)
        self.val_loss = self.val_accuracy = float("nan")
        self._val_sums = torch.zeros(3)
        self._stages_set_for_epoch = -1
        self._cuts: dict[tuple[torch.device, int], StemAndTail] = {}
        self._average: WeightAverage | None = None
        self._restored: dict[str, Tensor] | None = None

    def forward(self, batch: Batch | FeatureBatch) -> Tensor:
        """Logits (B, classes) of a batch of images, whose views are cut here, or of a batch of cached features."""
        if isinstance(batch, FeatureBatch):
            logits: Tensor = self.stem_and_tail().tail(batch.features)
        else:
            # Only training steps are compiled, see training/execution.py.
            network = self.network if torch.is_grad_enabled() else self.network.forward
            logits = network(self.view(batch))
        return logits

    def view(self, batch: Batch) -> Tensor:
        """The views of a batch: float32 (B, 3, size, size) in 0..255, channels last in memory."""
        views = cut_views(batch.pixels, batch.maps, batch.colour, batch.size, batch.erased)
        return mix_views(views, batch.mix) if batch.mix else views

    def stem_and_tail(self, n_trainable_stages: int | None = None) -> StemAndTail:
        """The network, cut before its last stages, by default those that train from the beginning.

        Raises CannotCutError.
        """
        device = next(self.network.parameters()).device
        if n_trainable_stages is None:
            n_trainable_stages = trainable_stages(self._architecture, 0, self._train.epochs)
        if (device, n_trainable_stages) not in self._cuts:
            self._cuts[device, n_trainable_stages] = cut_stem(self._architecture, n_trainable_stages)
        return self._cuts[device, n_trainable_stages]

    def training_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> Tensor:
        logits = self(batch).float()
        loss = self._training_loss(logits, batch.labels)
        if isinstance(batch, Batch) and batch.mix:  # linear in the labels, so this is the loss of the mixed ones
            other_loss = self._training_loss(logits, of_neighbours(batch.labels))
            loss = torch.lerp(other_loss, loss, batch.mix.own_share(batch.size))
        # Kept on the device: reading it at each step would make the CPU wait for the device.
        self.loss = loss.detach()
        self.finite = self.finite & torch.isfinite(self.loss)
        return loss

    def on_train_start(self) -> None:
        if self._train.ema:
            self._average = WeightAverage(self._architecture, self._train.ema, self._restored)
            self._restored = None

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self._average:  # before any callback may take a checkpoint
            self._average.update(self.global_step)

    def on_train_end(self) -> None:
        self._average = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With an average, it is what everyone but a resume finds in the checkpoint."""
        if self._average:
            state = checkpoint["state_dict"]
            averages = {_NETWORK + name: average for name, average in self._average.as_dict().items()}
            checkpoint[_RAW] = {name: state[name] for name in averages}
            state.update(averages)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._train.ema and _RAW in checkpoint:  # not in that of step 0, before which nothing is averaged
            state = checkpoint["state_dict"]
            self._restored = {name.removeprefix(_NETWORK): state[name] for name in checkpoint[_RAW]}
            state.update(checkpoint[_RAW])

    def _training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of logits (B, classes) and labels int64 (B,), smoothed and weighted by the recipe.

        Each image's loss is multiplied by its class's weight and divided by B, not by the sum of the weights as torch's
        own weights are: so the slices of a batch, on several ranks or one, have the mean of the batch.
        """
        smoothing, weights = self._train.label_smoothing, self._class_weights
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        assert isinstance(weights, Tensor)
        return (weights[labels] * F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")).mean()

    def check_finite(self, step: int, finite: bool) -> None:
        """Raise ConflictError if any training loss up to a step was not finite."""
        if not finite:
            raise self._not_finite("training", step)

    def _not_finite(self, which: str, step: int) -> ConflictError:
        return ConflictError(
            f"The {which} loss is not finite at step {step}: lower --lr, which is {self._train.lr:g}, "
            "or use --precision fp32."
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Unfreeze this epoch's stages; frozen ones are in eval mode too, so that their batch norm does not move.

        Done here and not at the epoch's start, since Lightning has no such hook after a resume in mid-epoch.
        """
        if self._stages_set_for_epoch != self.current_epoch:
            self._stages_set_for_epoch = self.current_epoch
            stages = trainable_stages(self._architecture, self.current_epoch, self._train.epochs)
            apply_strategy(self._architecture, stages)

    def on_validation_epoch_start(self) -> None:
        self._val_sums = torch.zeros(3, device=self.device)
        if self._average:
            self._average.swap()

    def validation_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> None:
        logits = self(batch).float()
        loss = F.cross_entropy(logits, batch.labels, reduction="sum", ignore_index=IGNORED)
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        self._val_sums += torch.stack([loss, correct.float(), (batch.labels != IGNORED).sum().float()])

    def on_validation_epoch_end(self) -> None:
        if self._average:
            self._average.swap()
        loss, correct, n = self.trainer.strategy.reduce(self._val_sums, reduce_op="sum").tolist()
        self.val_loss, self.val_accuracy = loss / n, correct / n
        if not math.isfinite(self.val_loss):
            raise self._not_finite("validation", self.global_step)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits float32 (B, classes), on the CPU."""
        logits: Tensor = self(batch).float().cpu()
        return logits

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self._architecture, lr=self._train.lr, weight_decay=self._train.weight_decay)
        optimiser = self._optimiser(groups)
        scheduler = LambdaLR(optimiser, lambda step: self.schedule.factor(step))  # noqa: PLW0108, its end may move
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimiser(self, groups: list[dict[str, Any]]) -> Optimizer:
        match self._train.optimiser:
            case "muon":
                trained = (each for group in groups for each in group["params"])
                if self.trainer.is_global_zero and not any(map(is_hidden, trained)):
                    events.warn("--optimiser muon is AdamW here: no convolution of a hidden layer trains.")
                return Muon(groups, MATRIX_DTYPES[str(self.trainer.precision)])
            case "sgd":
                return SGD(groups, momentum=0.9, nesterov=True, fused=True)
            case _:
                return AdamW(groups, fused=True)
