"""What the device does with a batch, part by part, and what it could do: its rate at multiplying large matrices."""

import torch

from inat_job.bench.epochs import Live
from inat_job.bench.measured import EPOCH, PICTURES, Measured
from inat_job.bench.timing import by_turns, rates
from inat_job.data.rows import Batch

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
    return [Measured("augmentation", PICTURES, rates(live.pictures, took["view"]), note="part of the step")]


def forward(live: Live, runs: int) -> list[Measured]:
    """The network forward in training, views and loss included, without gradients."""
    with torch.no_grad():
        took = by_turns({"forward": live.loss}, runs)
    return [Measured("forward", PICTURES, rates(live.pictures, took["forward"]), note="part of the step")]


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
    limits = rates(live.pictures * large.nbytes / here.nbytes, took["large"])
    values = rates(live.pictures, took["batch"])
    return [Measured("copy to the device", PICTURES, values, "large pinned copy", limits, role=EPOCH)]


def utilisation(live: Live, runs: int, macs: int | None, name: str, step_rates: tuple[float, ...]) -> list[Measured]:
    """Multiplying matrices, and what share of that training is: three passes of two operations a multiply-add.

    `macs` are those of a picture's forward pass, None where training is not all of backward too.
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
