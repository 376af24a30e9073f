"""--compile: the same losses as without it, one graph for each set of trained stages, and no fall-back in silence."""

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inat_job.bench.measurement import synchronize
from inat_job.settings import Settings
from tests.gpu.altered_job import run_altered
from tests.gpu.figures import Figures
from tests.gpu.watched_runs import StepLosses, on_both_slowly, run
from tests.harness.job_runs import SMALLER_B, Make

TOLERANCE = 0.02
"""Relative difference of an epoch's mean loss: fused operations round elsewhere than separate ones."""

A = {"part": "a", "model__dropout": "0"}  # a compiled dropout draws other numbers
FULL = {"part": "b", "model__backbone": "resnet18", "model__strategy": "full"}
GRADUAL = {"part": "b", "model__backbone": "resnet18", "model__strategy": "gradual"}
# The last value is the most graphs: one for each set of trained stages that four epochs go through.
CASES = [
    pytest.param("cpu", "default", A, 1, marks=pytest.mark.soak, id="cpu-default-a"),
    pytest.param("cpu", "default", GRADUAL | SMALLER_B, 3, marks=pytest.mark.long, id="cpu-default-gradual"),
    *(
        pytest.param("cuda", mode, changes, graphs, marks=pytest.mark.gpu, id=f"cuda-{mode}-{name}")
        for mode, name, changes, graphs in (
            ("default", "a", A, 1),
            ("reduce-overhead", "a", A, 1),
            ("default", "full", FULL, 1),
            ("reduce-overhead", "gradual", GRADUAL, 3),
        )
    ),
]


class TimedLosses(StepLosses):
    """The losses, and the time of each step of the last epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        synchronize()
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        synchronize()
        self.seconds.append(time.perf_counter() - self._began)


def trained(settings: Settings) -> TimedLosses:
    losses = TimedLosses()
    run(settings, losses)
    return losses


@pytest.mark.parametrize(("device", "mode", "changes", "most_graphs"), CASES)
def test_compiled_training_is_like_uncompiled(
    device: str,
    mode: str,
    changes: dict[str, Any],
    most_graphs: int,
    settings: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    from torch._dynamo.utils import counters

    common = {"train__accelerator": device, "train__epochs": "4", **changes}
    eager = trained(settings(run__output=str(tmp_path / "eager"), **common))
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compile_in_place(module, mode=mode))
    torch._dynamo.reset()
    counters.clear()
    compiled = trained(settings(train__compile="true", **common))
    counted = {name: dict(values) for name, values in counters.items()}
    epochs = [losses.values.view(4, -1).mean(dim=1) for losses in (eager, compiled)]
    error = float(((epochs[1] - epochs[0]) / epochs[0]).abs().max())
    step_ms = [1e3 * statistics.median(losses.seconds[-len(losses.seconds) // 4 :]) for losses in (eager, compiled)]
    figures.record(
        f"compile, {mode}, {changes.get('model__strategy', 'a')}, {device}",
        **{"loss_error": error, "eager_step_ms": step_ms[0], "compiled_step_ms": step_ms[1]},
        graphs=counted.get("stats", {}).get("unique_graphs"),
        breaks=counted.get("graph_break", {}),
        cuda_graph_skips=counted.get("inductor", {}).get("cudagraph_skips", 0),
        seconds_of_first_step=compiled.seconds[0],
    )
    assert 1 <= counted["stats"]["unique_graphs"] <= most_graphs
    assert counted.get("graph_break", {}) == {}
    assert counted["frames"]["ok"] == counted["frames"]["total"]
    assert error < TOLERANCE
    if mode == "reduce-overhead":
        assert counted.get("inductor", {}).get("cudagraph_skips", 0) == 0


@on_both_slowly
def test_job_without_a_compiler_says_that_it_is_not_compiled(device: str, tmp_path: Path) -> None:
    """On the card Triton is the compiler, on the CPU a C compiler."""
    words = "parta --data demo: --image-size 32 --filters 4 --epochs 1 --wandb off --compile --run-id r".split()
    ended = run_altered("no-compiler", [*words, "--accelerator", device, "--devices", "1"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "not compiled" in ended.stdout
    assert '"compile": false' in (tmp_path / "runs" / "r" / "report.json").read_text()
