"""The baseline, a child process: the same network trained with plain Lightning, as most people would write it.

torchvision's ImageFolder, a DataLoader with a worker for each core, transforms on one image at a time, a small
LightningModule, and Lightning's trainer with its defaults (fp32).

    python -m inat_job.bench.plain_lightning SPEC

With `lockstep` in the spec it reads a line before every epoch but the first, and prints the rate of each; without, it
trains to the end and prints the result.
"""

import json
import logging
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from inat_job.configuration import configure
from inat_job.host import cpu
from inat_job.models.build import BuildInputs, build
from inat_job.models.strategies import Architecture, apply_strategy, trainable_stages
from inat_job.run.run_state import storage_options
from inat_job.settings import Settings, TrainSettings
from inat_job.signals import never

WARM_UP_STEPS = 10
"""Steps at an epoch's start that the rate leaves out, and with them the start of the workers."""

FINE_TUNING_FACTOR = 0.1
"""Learning rate of a pretrained network of which all layers are trained, over that of any other network."""


@dataclass(frozen=True)
class BaselineSpec:
    """What the baseline trains; `flags` are the settings of the job, `folder` holds train/, val/ and test/."""

    part: str
    flags: dict[str, Any]
    folder: str
    epochs: int
    lockstep: bool


class PlainModule(LightningModule):
    def __init__(self, architecture: Architecture, lr: float) -> None:
        super().__init__()
        self.network, self._architecture, self._lr = architecture.network, architecture, lr

    def on_train_epoch_start(self) -> None:
        apply_strategy(self._architecture, trainable_stages(self._architecture, 0, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: list[Tensor], split: str) -> None:
        images, labels = batch
        logits = self.network(images)
        self.log(f"{split}_loss", F.cross_entropy(logits, labels))
        self.log(f"{split}_accuracy", (logits.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        trained = [each for each in self.network.parameters() if each.requires_grad]
        return torch.optim.AdamW(trained, lr=self._lr)


class EpochRates(Callback):
    """The images per second of each epoch, and its seconds with validation; in `lockstep` it waits for a line."""

    def __init__(self, batch_size: int, lockstep: bool) -> None:
        self._batch_size, self._lockstep = batch_size, lockstep
        self._begun = self._mark = 0.0
        self._warm_up = 0
        self.rates: list[float] = []
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._lockstep and trainer.current_epoch > 0:
            sys.stdin.readline()
        self._warm_up = min(WARM_UP_STEPS, int(trainer.num_training_batches) // 3)
        self._begun = self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == self._warm_up:
            self._mark = _now()
        if batch_idx + 1 == trainer.num_training_batches:
            counted = (batch_idx + 1 - self._warm_up) * self._batch_size
            self.rates.append(counted / (_now() - self._mark))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(_now() - self._begun)
        if self._lockstep:
            print(json.dumps({"rate": self.rates[-1]}), flush=True)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(text: str) -> None:
    """Train what the spec describes."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    spec = BaselineSpec(**json.loads(text))
    settings = configure(spec.part, spec.flags, [], None).settings
    torch.manual_seed(settings.train.seed)
    folder = Path(spec.folder)
    classes = len(list((folder / "train").iterdir()))
    options, cache_dir = storage_options(settings.storage), Path(settings.data.cache_dir)
    inputs = BuildInputs(classes, settings.data.image_size, True, cache_dir, options, never)
    architecture = build(settings.model, inputs)
    loaders = _loaders(folder, settings, architecture.network.preprocess)
    architecture.network.preprocess = nn.Identity()
    apply_strategy(architecture, trainable_stages(architecture, 0, 1))
    module = PlainModule(architecture, _learning_rate(settings))
    epochs = EpochRates(settings.train.batch_size, spec.lockstep)
    trainer = _trainer(spec, settings.train, epochs)
    trainer.fit(module, loaders["train"], None if spec.lockstep else loaders["val"])
    if not spec.lockstep:
        accuracy = trainer.test(module, loaders["test"], verbose=False)[0]["test_accuracy"]
        print(json.dumps({"rates": epochs.rates, "seconds": epochs.seconds, "accuracy": accuracy}), flush=True)


def _trainer(spec: BaselineSpec, train: TrainSettings, epochs: EpochRates) -> Trainer:
    return Trainer(
        max_epochs=spec.epochs,
        accelerator=train.accelerator,
        devices=1,
        callbacks=[epochs],
        default_root_dir=spec.folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _learning_rate(settings: Settings) -> float:
    """AdamW's usual rate, or a tenth of it if all layers of a pretrained network are trained."""
    model = settings.model
    all_layers = getattr(model, "strategy", "") in ("full", "lp-ft") and getattr(model, "weights", "") != "none"
    return 1e-3 * (FINE_TUNING_FACTOR if all_layers else 1.0)


def _loaders(folder: Path, settings: Settings, preprocess: Any) -> dict[str, "DataLoader[Any]"]:
    to_tensor = [
        T.ToTensor(),
        T.Normalize(*((each.flatten() / 255).tolist() for each in (preprocess.mean, preprocess.std))),
    ]
    size = settings.data.image_size
    eval_size = settings.data.eval_size
    plain = T.Compose([T.Resize(round(eval_size / settings.data.eval_crop)), T.CenterCrop(eval_size), *to_tensor])
    erasing = [T.RandomErasing(settings.train.erase)] if settings.train.erase else []
    augmented = T.Compose([*_augmentation(settings.train, size), *to_tensor, *erasing])
    augmented = augmented if settings.train.augment else plain
    return {
        split: DataLoader(
            ImageFolder(str(folder / split), augmented if split == "train" else plain),
            batch_size=settings.train.batch_size,
            shuffle=split == "train",
            drop_last=split == "train",
            num_workers=cpu.available_cpus(),
            pin_memory=torch.cuda.is_available(),
        )
        for split in ("train", "val", "test")
    }


def _augmentation(train: TrainSettings, size: int) -> list[Any]:
    """The recipe's augmentation, on one image at a time; images are not mixed."""
    return [
        T.RandomResizedCrop(size, scale=(train.crop_scale, 1.0)),
        T.RandomHorizontalFlip(0.0 if train.flip == "none" else 0.5),
        *([T.TrivialAugmentWide()] if train.trivial_augment else []),
        *([T.RandomRotation(train.rotation)] if train.rotation else []),
        T.ColorJitter(train.colour, train.colour, train.colour),
    ]


if __name__ == "__main__":
    main(sys.argv[1])
