"""What the device does with a batch, step by step, compared with its peak; and the rate of batch assembly."""

import torch
from lightning import Trainer

from inat_job.bench.epochs import Live
from inat_job.bench.measurement import EPOCH, PICTURES, Measured, by_turns, rates
from inat_job.data.batches import Batch
from inat_job.data.module import ImageDataModule
from inat_job.evaluation.predictions import predict
from inat_job.models.classifier import Classifier

PEAKS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L4": 121.0,
    "A10G": 70.0,
    "T4": 65.0,
    "V100": 125.0,
}
"""Dense TFLOP/s in bf16, in fp16 where there is no bf16 (T4, V100), by a word of the device's name; of the makers' data
sheets, for the SXM variants of H100, H200 and V100: https://www.nvidia.com/en-us/data-center/"""

_SIDES = {"cuda": 8192, "cpu": 1536, "mps": 2048}
_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}


def peak(device: str) -> float | None:
    """The data sheet's TFLOP/s of a device, by its name."""
    words = device.replace("-", " ").split()
    return next((rate for name, rate in PEAKS.items() if name in words), None)


def augmentation(live: Live, runs: int) -> list[Measured]:
    """Cutting the views out of the squares."""
    if not isinstance(live.batch, Batch):
        return []
    with torch.no_grad():
        took = by_turns({"view": lambda: live.classifier.view(live.batch)}, runs)
    return [Measured("augmentation", PICTURES, rates(live.images, took["view"]), note="part of the step")]


def forward(live: Live, runs: int) -> list[Measured]:
    """The network forward in training, views and loss included, without gradients."""
    with torch.no_grad():
        took = by_turns({"forward": live.loss}, runs)
    return [Measured("forward", PICTURES, rates(live.images, took["forward"]), note="part of the step")]


def copy(live: Live, runs: int) -> list[Measured]:
    """A batch from pinned memory to a GPU, against one large copy."""
    device = live.classifier.device
    if device.type != "cuda" or not isinstance(live.batch, Batch):
        return []
    here = live.batch.pixels.cpu().pin_memory()
    large = torch.empty(max(2**28, here.nbytes), dtype=torch.uint8).pin_memory()
    took = by_turns(
        {
            "batch": lambda: here.to(device, non_blocking=True),
            "large": lambda: large.to(device, non_blocking=True),
        },
        runs,
    )
    limits = rates(live.images * large.nbytes / here.nbytes, took["large"])
    values = rates(live.images, took["batch"])
    return [Measured("copy to the device", PICTURES, values, "large pinned copy", limits, role=EPOCH)]


def utilisation(live: Live, runs: int, macs: int | None, name: str, step_rates: tuple[float, ...]) -> list[Measured]:
    """Multiplying matrices, and what share of that training is: three passes of two operations a multiply-add.

    `macs` are those of a image's forward pass, None where training is not all of backward too.
    """
    reached = _matrices(live, runs)
    sheet = peak(name)
    note = "" if sheet is None else f"{max(reached) / sheet:.2f} of the data sheet's {sheet:g}"
    found = [Measured("large matrices", "TFLOP/s", reached, note=note)]
    if macs is not None and step_rates:
        values = tuple(6 * macs * rate / 1e12 for rate in step_rates)
        limit = ("data sheet", (sheet,)) if sheet else ("large matrices", (max(reached),))
        found.append(Measured("model flops", "TFLOP/s", values, *limit))
    return found


def _matrices(live: Live, runs: int) -> tuple[float, ...]:
    device = live.classifier.device
    side = _SIDES[device.type]
    kind = _TYPES[live.trainer.precision]
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    took = by_turns({"product": lambda: left @ right}, runs)
    return rates(2 * side**3 / 1e12, took["product"])


def assembly(images: ImageDataModule, runs: int) -> list[Measured]:
    """An epoch of training batches that nobody works on."""
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

    took = by_turns({"epoch": epoch, "copy": copies}, runs)
    batches.go_to(0, 0)
    count = len(batches) * images.slice_size
    limit = rates(count, took["copy"])
    return [Measured("batch assembly", PICTURES, rates(count, took["epoch"]), "memory copy", limit, role=EPOCH)]


def evaluation(trainer: Trainer, classifier: Classifier, images: ImageDataModule, runs: int) -> list[Measured]:
    """The test as the job does it, against the forward passes alone."""
    batches, device = images.batches(images.test_rows), trainer.strategy.root_device
    batch = trainer.strategy.batch_to_device(next(iter(batches)), device)
    count = len(batch.labels)

    def forwards() -> None:
        classifier.to(device).eval()
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for _ in range(max(1, round(len(images.test_rows) / count))):
                classifier(batch)

    took = by_turns({"test": lambda: predict(trainer, classifier, batches), "forward": forwards}, runs, least_s=0)
    limit = rates(max(1, round(len(images.test_rows) / count)) * count, took["forward"])
    return [Measured("test", PICTURES, rates(len(images.test_rows), took["test"]), "forward alone", limit)]
