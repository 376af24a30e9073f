"""The LightningModule of both parts: the training, validation and prediction steps, and the learning rate schedule.

Lightning's trainer runs the training loop (training/trainer.py); `training_step` is what it does with one batch."""

import math
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from inat_job.data.augment import cut_views
from inat_job.data.batches import IGNORED, Batch
from inat_job.data.features import FeatureBatch
from inat_job.errors import ConflictError
from inat_job.models.frozen_stem import StemAndTail, cut_stem
from inat_job.models.strategies import Architecture, apply_strategy, parameter_groups, trainable_stages
from inat_job.settings import DataSettings, TrainSettings


class Classifier(LightningModule):
    """A network with its recipe.

    `loss` is the last batch's, and `finite` says whether all so far were finite, both on the device; `val_loss` and
    `val_accuracy` are the last validation's.
    """

    def __init__(
        self, architecture: Architecture, train: TrainSettings, data: DataSettings, steps_per_epoch: int
    ) -> None:
        super().__init__()
        self.network = architecture.network
        self._architecture = architecture
        self._train, self._data = train, data
        self._total_steps = train.epochs * steps_per_epoch
        self.loss = torch.tensor(float("nan"))
        self.finite = torch.tensor(True)
        self.val_loss = self.val_accuracy = float("nan")
        self._val_sums = torch.zeros(3)
        self._stages_set_for_epoch = -1
        self._cuts: dict[tuple[torch.device, int], StemAndTail] = {}

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
        """The views of a batch: float32 (B, 3, image size, image size) in 0..255, channels last in memory."""
        return cut_views(batch.pixels, batch.maps, batch.colour, self._data.image_size)

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
        logits = self(batch)
        loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=self._train.label_smoothing)
        # Kept on the device: reading it at each step would make the CPU wait for the device.
        self.loss = loss.detach()
        self.finite = self.finite & torch.isfinite(self.loss)
        return loss

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

    def validation_step(self, batch: Batch | FeatureBatch, batch_idx: int) -> None:
        logits = self(batch).float()
        loss = F.cross_entropy(logits, batch.labels, reduction="sum", ignore_index=IGNORED)
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        self._val_sums += torch.stack([loss, correct.float(), (batch.labels != IGNORED).sum().float()])

    def on_validation_epoch_end(self) -> None:
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
        optimiser = AdamW(groups, lr=self._train.lr, fused=True)
        total, warmup = self._total_steps, self._train.warmup
        schedule = LambdaLR(optimiser, lambda step: learning_rate_factor(step, total, warmup))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Learning rate at a step over the peak rate, 0..1.

    It rises linearly over the share `warmup` of the steps, then falls to zero along half a cosine (Loshchilov and
    Hutter, SGDR, 2016).
    """
    rise = max(1, min(round(warmup * total), total - 1))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))
