"""Faults of the card and too little memory: the exit code, and one sentence that says what to do."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.altered_job import run_altered
from tests.gpu.figures import Figures
from tests.gpu.watched_runs import on_both_slowly, run
from tests.harness.job_runs import settings_in

SMALL = "parta --data demo: --image-size 32 --filters 8 --epochs 2 --wandb off --run-id r --devices 1".split()

HOLD = """
import sys, torch
free = torch.cuda.mem_get_info()[0]
held = torch.empty(free - 2**28, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""
"""Takes all memory of the card but 256 MiB, less than a context and the images need, until its stdin is closed."""


def last_line(ended: "subprocess.CompletedProcess[str]") -> str:
    return (ended.stderr.strip().splitlines() or [""])[-1]


@on_both_slowly
def test_failed_card_is_tried_again_elsewhere(device: str, tmp_path: Path, figures: Figures) -> None:
    ended = run_altered("illegal-access", [*SMALL, "--accelerator", device], tmp_path)
    figures.record("faults", **{f"illegal access, {device}": [ended.returncode, last_line(ended)]})
    assert ended.returncode == 75, ended.stderr
    assert last_line(ended).startswith("Error: ")


@on_both_slowly
def test_full_card_is_a_conflict(device: str, tmp_path: Path, figures: Figures) -> None:
    ended = run_altered("memory", [*SMALL, "--accelerator", device], tmp_path)
    figures.record("faults", **{f"out of memory, {device}": [ended.returncode, last_line(ended)]})
    assert ended.returncode == 78, ended.stderr
    assert "--batch-size" in last_line(ended)


@pytest.mark.gpu
def test_card_filled_by_another_process_is_a_conflict(tmp_path: Path, figures: Figures) -> None:
    """Wherever in the job the memory is missing: in the context, in cuBLAS, in cuDNN."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            words = "partb --data demo: --weights none --strategy full --wandb off --run-id r --devices 1".split()
            ended = run_altered("no-nvml", [*words, "--accelerator", "cuda"], tmp_path)
        finally:
            holder.communicate("")
    figures.record("faults", filled_card=[ended.returncode, last_line(ended)])
    assert ended.returncode == 78, ended.stderr
    assert "memory" in last_line(ended)


@pytest.mark.gpu
def test_batch_that_does_not_fit_is_a_conflict(large_archive: Path, tmp_path: Path, figures: Figures) -> None:
    """In a process of its own: if a kernel cannot count so many elements, the card is lost for the process."""
    words = "partb --weights none --strategy full --image-size 224 --batch-size 4096 --wandb off --run-id r --devices 1"
    arguments = [*words.split(), "--accelerator", "cuda", "--data", str(large_archive)]
    ended = run_altered("no-nvml", [*arguments, "--cache-dir", str(large_archive.parent / "cache")], tmp_path)
    figures.record("faults", batch_of_4096=[ended.returncode, last_line(ended)])
    assert ended.returncode == 78, ended.stderr
    assert "--batch-size" in last_line(ended)


@pytest.mark.gpu
def test_peak_memory_is_recorded(large_archive: Path, tmp_path: Path, figures: Figures) -> None:
    for batch in (64, 128, 256):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run(resnet50(large_archive, tmp_path, batch))
        peak = torch.cuda.max_memory_allocated() / 1e9
        figures.record("peak memory, ResNet-50, 224 px, GB", **{str(batch): peak})
        assert peak < torch.cuda.get_device_properties(0).total_memory / 1e9


def resnet50(archive: Path, folder: Path, batch: int) -> Any:
    """One epoch of ResNet-50 at 224 px; the images are prepared once for all batch sizes."""
    return settings_in(
        folder,
        archive,
        "b",
        model__backbone="resnet50",
        model__strategy="full",
        data__image_size="224",
        data__cache_dir=str(archive.parent / "cache"),
        run__output=str(folder / str(batch)),
        train__epochs="1",
        train__batch_size=str(batch),
        train__devices="1",
        train__accelerator="cuda",
    )


@on_both_slowly
def test_heartbeat_says_how_busy_the_device_is(device: str, tmp_path: Path) -> None:
    """Without the package that asks the driver, which is not in the container image."""
    arguments = [*SMALL, "--accelerator", device, "--log-format", "json", "--epochs", "20"]
    ended = run_altered("no-nvml", arguments, tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    beats = [line for line in lines if line["event"] == "heartbeat" and line.get("images_per_s")]
    assert beats
    assert all(line["device_use"] >= 0 for line in beats), beats[-1]
