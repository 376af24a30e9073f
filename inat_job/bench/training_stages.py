"""The stages of training, measured in this process: epochs, steps, views, copies, batches, checkpoints, the test.

Each is measured alternately with its limit, on the network, the data and the device of a real run.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from inat_job.bench.measurement import EPOCH, IMAGES_PER_S, Measurement, rates, synchronize, time_alternately, time_once
from inat_job.checkpoints import training_state
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest
from inat_job.checkpoints.state_buffer import StateBuffer
from inat_job.checkpoints.uploader import Uploader
from inat_job.data.batches import Batch
from inat_job.data.module import ImageDataModule
from inat_job.errors import TransientError
from inat_job.evaluation.predictions import predict
from inat_job.models.classifier import MATRIX_DTYPES, Classifier

PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L4": 121.0, "A10G": 70.0, "T4": 65.0, "V100": 125.0}
"""Dense TFLOP/s in bf16, or fp16 where there is no bf16 (T4, V100), by a word in the device's name; from the data
sheets, for the SXM variants of H100, H200 and V100: https://www.nvidia.com/en-us/data-center/"""

_MATRIX_SIDES = {"cuda": 8192, "cpu": 1536, "mps": 2048}
_STORE_TIMEOUT_S = 600.0
_BLOCK = bytes(2**22)


@dataclass(frozen=True)
class LiveTraining:
    """A network in the middle of training, on the run's device and in its precision.

    `batch` is a training batch on the device, with `images` images; an optimiser step takes `slices` batches.
    """

    trainer: Trainer
    classifier: Classifier
    batch: Any
    images: int
    slices: int

    def loss(self) -> torch.Tensor:
        """The loss of one forward pass, as in training."""
        with self.trainer.precision_plugin.train_step_context():
            return self.classifier.training_step(self.batch, 0)

    def steps(self, batches: int) -> None:
        """Train on `batch` so many times: forward, backward, optimiser, and no data loading.

        Gradients are cleared between forward and backward, as Lightning does: on a CPU, clearing them before makes a
        small network slower by a seventh, and a limit must not be slower than what it limits.
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


TrainEpoch = Callable[[], float]
"""Trains one epoch of something else, to compare with; returns its images per second."""


@dataclass
class EpochTimer(Callback):
    """Times every epoch of a fit except the first, which warms up, and after each one the same steps without data.

    `others` are measured after each epoch too. `at_end` is called when training is over and everything still in place.
    """

    images: int
    slices: int
    others: dict[str, TrainEpoch] = field(default_factory=dict)
    at_end: Callable[[LiveTraining], None] = lambda live: None
    epoch_rates: list[float] = field(default_factory=list)
    step_rates: list[float] = field(default_factory=list)
    other_rates: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._batch: Any = None
        self._started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize()
        self._started = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0:
            self._batch = batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize()
        epoch_s, is_warm = time.perf_counter() - self._started, trainer.current_epoch > 0
        batches = int(trainer.num_training_batches)
        live = self._live(trainer, pl_module)
        steps_s = time_once(lambda: live.steps(batches if is_warm else min(batches, 3 * self.slices)))
        others = {name: train_epoch() for name, train_epoch in self.others.items()}
        if is_warm:
            self.epoch_rates.append(batches * self.images / epoch_s)
            self.step_rates.append(batches * self.images / steps_s)
            for name, rate in others.items():
                self.other_rates.setdefault(name, []).append(rate)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at_end(self._live(trainer, pl_module))

    def _live(self, trainer: Trainer, module: LightningModule) -> LiveTraining:
        assert isinstance(module, Classifier)
        return LiveTraining(trainer, module, self._batch, self.images, self.slices)

    def measurements(self) -> list[Measurement]:
        """The step, the epoch, and the epoch over each of the others."""
        steps, epochs = tuple(self.step_rates), tuple(self.epoch_rates)
        if not epochs:
            return []
        found = [
            Measurement("step without data", IMAGES_PER_S, steps, role=EPOCH),
            Measurement("training epoch", IMAGES_PER_S, epochs, "step without data", steps),
        ]
        for name, other in self.other_rates.items():
            found.append(Measurement(name, IMAGES_PER_S, tuple(other)))
            ratios = tuple(ours / theirs for ours, theirs in zip(epochs, other, strict=True))
            found.append(Measurement(f"training epoch over {name}", "times", ratios))
        return found


def augmentation(live: LiveTraining, runs: int) -> list[Measurement]:
    """Cutting the augmented views out of the cached squares."""
    if not isinstance(live.batch, Batch):
        return []
    with torch.no_grad():
        seconds = time_alternately({"view": lambda: live.classifier.view(live.batch)}, runs)
    return [Measurement("augmentation", IMAGES_PER_S, rates(live.images, seconds["view"]), note="part of the step")]


def forward(live: LiveTraining, runs: int) -> list[Measurement]:
    """The forward pass in training, with views and loss, without gradients."""
    with torch.no_grad():
        seconds = time_alternately({"forward": live.loss}, runs)
    return [Measurement("forward", IMAGES_PER_S, rates(live.images, seconds["forward"]), note="part of the step")]


def copy(live: LiveTraining, runs: int) -> list[Measurement]:
    """Copying a batch from pinned memory to a GPU; the limit is one large copy."""
    device = live.classifier.device
    if device.type != "cuda" or not isinstance(live.batch, Batch):
        return []
    batch = live.batch.pixels.cpu().pin_memory()
    large = torch.empty(max(2**28, batch.nbytes), dtype=torch.uint8).pin_memory()
    seconds = time_alternately(
        {"batch": lambda: batch.to(device, non_blocking=True), "large": lambda: large.to(device, non_blocking=True)},
        runs,
    )
    limits = rates(live.images * large.nbytes / batch.nbytes, seconds["large"])
    values = rates(live.images, seconds["batch"])
    return [Measurement("copy to the device", IMAGES_PER_S, values, "large pinned copy", limits, role=EPOCH)]


def peak_tflops(device: str) -> float | None:
    """The data sheet's TFLOP/s of a device, by its name; None if it is not known."""
    words = device.replace("-", " ").split()
    return next((rate for name, rate in PEAKS.items() if name in words), None)


def utilisation(
    live: LiveTraining, runs: int, macs: int | None, device_name: str, step_rates: tuple[float, ...]
) -> list[Measurement]:
    """The rate of large matrix products, and which share of it training reaches.

    Training is counted as three forward passes with two operations for each multiply-add. `macs` are those of one
    image's forward pass, None if training has no full backward pass.
    """
    reached = _matrix_products(live, runs)
    sheet = peak_tflops(device_name)
    note = "" if sheet is None else f"{max(reached) / sheet:.2f} of the data sheet's {sheet:g}"
    found = [Measurement("large matrices", "TFLOP/s", reached, note=note)]
    if macs is not None and step_rates:
        values = tuple(6 * macs * rate / 1e12 for rate in step_rates)
        limit = ("data sheet", (sheet,)) if sheet else ("large matrices", (max(reached),))
        found.append(Measurement("model flops", "TFLOP/s", values, *limit))
    return found


def _matrix_products(live: LiveTraining, runs: int) -> tuple[float, ...]:
    device = live.classifier.device
    side = _MATRIX_SIDES[device.type]
    dtype = MATRIX_DTYPES[live.trainer.precision]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = time_alternately({"product": lambda: left @ right}, runs)
    return rates(2 * side**3 / 1e12, seconds["product"])


def assembly(images: ImageDataModule, runs: int) -> list[Measurement]:
    """Assembling an epoch's training batches without training; the limit is a copy of as many bytes."""
    batches = images.train_batches
    sample = next(iter(batches))[0]
    target = torch.empty_like(sample)

    def copies() -> None:
        for _ in range(len(batches)):
            target.copy_(sample)

    def epoch() -> None:
        batches.go_to(0, 0)
        for _ in batches:
            pass

    seconds = time_alternately({"epoch": epoch, "copy": copies}, runs)
    batches.go_to(0, 0)
    count = len(batches) * images.slice_size
    limit = rates(count, seconds["copy"])
    return [
        Measurement("batch assembly", IMAGES_PER_S, rates(count, seconds["epoch"]), "memory copy", limit, role=EPOCH)
    ]


def evaluation(trainer: Trainer, classifier: Classifier, images: ImageDataModule, runs: int) -> list[Measurement]:
    """The test, as the job does it; the limit is its forward passes alone."""
    batches, device = images.batches(images.test_rows), trainer.strategy.root_device
    batch = trainer.strategy.batch_to_device(next(iter(batches)), device)
    count = len(batch.labels)

    def forwards() -> None:
        classifier.to(device).eval()
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for _ in range(max(1, round(len(images.test_rows) / count))):
                classifier(batch)

    works = {"test": lambda: predict(trainer, classifier, batches), "forward": forwards}
    seconds = time_alternately(works, runs, least_s=0)
    limit = rates(max(1, round(len(images.test_rows) / count)) * count, seconds["forward"])
    values = rates(len(images.test_rows), seconds["test"])
    return [Measurement("test", IMAGES_PER_S, values, "forward alone", limit)]


@dataclass(frozen=True)
class StoredCheckpoint:
    """One checkpoint: its bytes, the seconds until it was durable, those that training waited for it, and the
    processor time, in seconds, that it took in the background."""

    size: int
    seconds: float
    waited_s: float
    background_s: float


def checkpoint(
    live: LiveTraining, checkpoints: CheckpointIndex, uploader: Uploader, runs: int, epoch_s: float
) -> list[Measurement]:
    """Storing a checkpoint until it is durable; the limit is a plain file of as many bytes on this machine's disk.

    One warms up, `runs` are measured. `epoch_s` are the seconds of an epoch, 0 if unknown.
    """
    plain_path = checkpoints.folder.path("plain")
    stored, plain, buffer = [], [], StateBuffer()
    for number in range(runs + 1):
        each = _store(live, checkpoints, uploader, buffer, live.trainer.global_step + number + 1)
        seconds = time_once(partial(_write_plain, plain_path, each.size))
        if number:
            stored.append(each)
            plain.append(each.size / 1e6 / seconds)
    plain_path.unlink()
    values = tuple(each.size / 1e6 / each.seconds for each in stored)
    found = [Measurement("checkpoint until durable", "MB/s", values, "plain file", tuple(plain))]
    if epoch_s:
        costs = tuple((each.waited_s + each.background_s) / epoch_s for each in stored)
        note = "what training waits, and the processor's time in the background"
        found.append(Measurement("a checkpoint an epoch", "of an epoch", costs, note=note))
    return found


def _store(
    live: LiveTraining, checkpoints: CheckpointIndex, uploader: Uploader, buffer: StateBuffer, step: int
) -> StoredCheckpoint:
    started, this_thread, all_threads = time.perf_counter(), time.thread_time(), time.process_time()
    uploader.save(_manifest(step), partial(buffer.copy, training_state.collect(live.trainer)))
    waited = time.perf_counter() - started
    if not uploader.flush(_STORE_TIMEOUT_S):
        raise TransientError(f"A checkpoint was not stored within {_STORE_TIMEOUT_S:g} s: check --output.")
    seconds = time.perf_counter() - started
    background = time.process_time() - all_threads - (time.thread_time() - this_thread)
    return StoredCheckpoint(checkpoints.stored[-1].size, seconds, waited, background)


def _manifest(step: int) -> Manifest:
    return Manifest(
        step=step,
        epoch=0,
        val_accuracy=None,
        val_loss=None,
        accuracies=[],
        validate=False,
        ended="",
        data_digest="",
        split_digest="",
        train_s=0.0,
        images_per_s=None,
    )


def _write_plain(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, len(_BLOCK)):
            file.write(_BLOCK[: size - start])
        file.flush()
        os.fsync(file.fileno())
