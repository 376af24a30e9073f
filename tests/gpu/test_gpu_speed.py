"""The speed table: `bench` for both parts, traced steps, a whole job, and the two usual ways on the same images.

Nothing here fails for being slow: the figures are recorded beside their targets.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from inat_job.bench import children, synthetic
from inat_job.command_options import BenchOptions
from inat_job.commands import bench
from inat_job.configuration import configure
from inat_job.job_status import STATUS
from inat_job.run.prepare_images import prepare_images
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from tests.gpu.figures import Figures
from tests.gpu.traces import TraceSteps
from tests.gpu.watched_runs import GPU, QuietStop, run

WHOLE_JOB_EPOCHS = 10
TRAINED = 8000
"""Of the generated images, a fifth is for validation."""


@dataclass(frozen=True)
class Scale:
    """How much is measured: on a card what the targets are about, on a CPU only enough to try the code."""

    images: int
    image_sizes: dict[str, tuple[int, ...]]
    batch_sizes: dict[str, tuple[int, ...]]
    runs: int
    baseline_batch: int
    epochs: int
    traced: int


CARD = Scale(
    TRAINED * 5 // 4, {"a": (128, 224), "b": (224,)}, {"a": (64, 256), "b": (64, 128)}, 3, 64, WHOLE_JOB_EPOCHS, 20
)
TRIAL = Scale(100, {"a": (32,), "b": (32,)}, {"a": (16,), "b": (16,)}, 1, 16, 1, 2)
SCALES = {"cuda": CARD, "cpu": TRIAL}
DEVICES = [pytest.param("cpu", marks=pytest.mark.soak), GPU]
ROWS = [
    pytest.param(device, part, size, batch, marks=mark, id=f"{device}-{part}-{size}-{batch}")
    for device, scale in SCALES.items()
    for part in ("a", "b")
    for size in scale.image_sizes[part]
    for batch in scale.batch_sizes[part]
    for mark in [pytest.mark.gpu if device == "cuda" else pytest.mark.soak]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache and the runs of all tests here."""
    return tmp_path_factory.mktemp("speed")


def made(folder: Path, part: str, device: str, size: int, batch: int, epochs: int = 4) -> Settings:
    """Part A, or ResNet-50 with all layers trained, on generated images."""
    flags: dict[str, Any] = {
        "data.uri": str(synthetic.synthetic(folder / "cache" / "synthetic", SCALES[device].images, 480)),
        "data.cache_dir": str(folder / "cache"),
        "data.image_size": str(size),
        "run.output": str(folder / "runs"),
        "run.run_id": f"{part}-{size}-{batch}-{epochs}",
        "train.epochs": str(epochs),
        "train.batch_size": str(batch),
        "train.accelerator": device,
        "train.devices": "1",
        "tracker.mode": "off",
    }
    if part == "b":
        name = "resnet50" if device == "cuda" else "resnet18"
        flags |= {"model.backbone": name, "model.weights": "none", "model.strategy": "full"}
    return configure(part, flags, [], None).settings


@pytest.mark.parametrize(("device", "part", "size", "batch"), ROWS)
def test_row_of_the_speed_table(
    device: str, part: str, size: int, batch: int, folder: Path, tmp_path: Path, figures: Figures
) -> None:
    scale, settings = SCALES[device], made(folder, part, device, size, batch)
    baseline = batch == scale.baseline_batch and size == scale.image_sizes[part][0]
    request = BenchOptions(
        runs=scale.runs, stages=("epoch", "matrix"), baseline=baseline, json=str(tmp_path / "bench.json")
    )
    bench.run(settings, request, QuietStop(), time.perf_counter())
    measured = {each["name"]: each for each in json.loads((tmp_path / "bench.json").read_text())["measured"]}
    steps = TraceSteps(scale.traced)
    run(settings, steps)
    status, traced = STATUS.snapshot(), steps.trace
    assert traced is not None
    epoch, ratio = measured["training epoch"], measured.get("training epoch over baseline epoch")
    row = {
        "part": part,
        "image_size": size,
        "batch_size": batch,
        "images_per_s": epoch["median"],
        "data_free_images_per_s": measured["step without data"]["median"],
        "share": epoch["share"]["median"],
        "launches_per_step": traced.launches,
        "kernels_per_step": traced.kernels,
        "idle_share": traced.idle,
        "data_wait": status.waited_s / status.trained_s if status.trained_s else None,
        "over_plain_lightning": ratio and ratio["median"],
        "matrix_tflops": measured["large matrices"]["median"],
        "device": device,
    }
    figures.speed.append(row)
    assert row["share"] > 0
    if device == "cuda":
        add_targets(figures, row)


def add_targets(figures: Figures, row: dict[str, Any]) -> None:
    """The targets are for the card that they name; a figure of another one is recorded beside them all the same."""
    name = f"part {row['part']}, {row['image_size']} px, batches of {row['batch_size']}"
    if (row["part"], row["image_size"]) == ("a", 128):
        figures.aim(f"{name}: share of the step without data", row["share"], 0.95)
        figures.aim(f"{name}: images/s", row["images_per_s"], 40_000)
    if (row["part"], row["image_size"]) == ("b", 224):
        figures.aim(f"{name}: share of the step without data", row["share"], 0.97)
        figures.aim(f"{name}: images/s on an H200", row["images_per_s"], 2_800)


@pytest.mark.parametrize("device", DEVICES)
def test_whole_job_from_a_prepared_cache(device: str, folder: Path, figures: Figures) -> None:
    scale = SCALES[device]
    size, batch = scale.image_sizes["b"][0], scale.batch_sizes["b"][0]
    settings = made(folder, "b", device, size, batch, scale.epochs)
    prepare_images(settings, Clock(time.perf_counter()), QuietStop())
    new = replace(settings, run=replace(settings.run, run_id="whole"))
    ended = children.run(children.job(new))
    phases: dict[str, float] = {}
    for (at, line), (until, _) in zip(ended.lines, [*ended.lines[1:], (ended.seconds, "")], strict=True):
        name = json.loads(line).get("phase", "import") if line.startswith("{") else "import"
        phases[name] = phases.get(name, 0.0) + until - at
    phases["import"] = phases.get("import", 0.0) + ended.lines[0][0]
    report = json.loads((folder / "runs" / "whole" / "report.json").read_text())
    figures.record(
        f"whole job from a prepared cache, {device}",
        **{"seconds": ended.seconds, "phases": phases, "timing": report["timing"], "epochs": scale.epochs},
        peak_memory_bytes=ended.peak_bytes,
    )
    assert {"train", "validate", "test"} <= phases.keys()
    assert sum(phases.values()) == pytest.approx(ended.seconds, rel=0.01)
    if device == "cuda":
        figures.aim("ten epochs of 8,000 images, whole job, s", ended.seconds, 60, at_most=True)


@pytest.mark.parametrize("device", DEVICES)
def test_timm_on_the_same_images(device: str, folder: Path, tmp_path: Path, figures: Figures) -> None:
    scale = SCALES[device]
    size, batch = scale.image_sizes["b"][0], scale.batch_sizes["b"][0]
    section = f"timm, {device}"
    if importlib.util.find_spec("timm") is None:
        figures.record(section, images_per_s=None, over_timm=None, reason="timm is not installed")
        pytest.skip("timm is not installed")
    with zipfile.ZipFile(made(folder, "b", device, size, batch).data.uri) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if "/train/" in name])
    images = str(tmp_path / "synthetic" / "train")
    program = str(Path(__file__).with_name("timm_training.py"))
    command = [sys.executable, program, images, str(size), str(batch), "3" if device == "cuda" else "2", device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rate = statistics.median(json.loads(done.stdout.splitlines()[-1]))
    rows = (row for row in figures.speed if (row["part"], row["batch_size"], row["device"]) == ("b", batch, device))
    ours = next((row["images_per_s"] for row in rows), None)
    figures.record(section, images_per_s=rate, over_timm=ours and ours / rate, batch_size=batch, image_size=size)
    assert rate > 0
