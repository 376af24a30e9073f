"""Training steps: nothing in them waits for the card, and what they launch is counted."""

from dataclasses import asdict

import pytest
import torch

from tests.gpu.figures import Figures
from tests.gpu.traces import RefuseWaits, TraceSteps, read_trace
from tests.gpu.watched_runs import on_both, run
from tests.harness.job_runs import Make

PARTS = {
    "a": {"part": "a"},
    "head": {"part": "b", "model__backbone": "resnet18", "model__strategy": "head"},
    "full": {"part": "b", "model__backbone": "resnet18", "model__strategy": "full"},
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("resident_share", ["0.5", "0"])
@pytest.mark.gpu
def test_no_step_waits_for_the_card(name: str, resident_share: str, settings: Make) -> None:
    refuse = RefuseWaits()
    changes = {"train__accelerator": "cuda", "train__resident_share": resident_share, **PARTS[name]}
    run(settings(**changes), refuse)
    assert refuse.steps == 16


@pytest.mark.parametrize(
    ("device", "name"), [("cpu", "a"), *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in PARTS)]
)
def test_no_step_copies_from_pageable_memory(device: str, name: str, settings: Make, figures: Figures) -> None:
    """The sync debug mode does not see such copies. In the first epoch, since no checkpoint is written yet."""
    steps = TraceSteps(steps=8, epoch=0)
    run(settings(train__accelerator=device, **PARTS[name]), steps)
    assert steps.trace is not None
    figures.record(f"training step, {name}, {device}", **asdict(steps.trace))
    assert steps.trace.operators > 0
    assert (steps.trace.launches > 0) == (device == "cuda")
    assert steps.trace.pageable_copies == 0
    assert steps.trace.waits == {}


@on_both
def test_refused_wait_ends_the_run(device: str, settings: Make) -> None:
    """Otherwise the test above could not fail."""

    class Waits(RefuseWaits):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
            if batch_idx == 3:
                pl_module.loss.item()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    made, waits = settings(train__accelerator=device), Waits()
    if device == "cpu":
        run(made, waits)
        assert waits.steps == 16
        return
    with pytest.raises(RuntimeError, match="synchronizing"):
        run(made, waits)


def test_trace_is_read() -> None:
    def span(cat: str, name: str, start: float, duration: float) -> dict[str, object]:
        return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration}

    events = [
        span("cpu_op", "aten::add", 0, 5),
        span("cuda_runtime", "cudaLaunchKernel", 1, 1),
        span("cuda_driver", "cuLaunchKernelEx", 2, 1),
        span("cuda_runtime", "cudaStreamSynchronize", 3, 1),
        span("cuda_runtime", "cudaDeviceSynchronize", 99, 1),
        span("kernel", "add", 10, 20),
        span("kernel", "add", 20, 20),
        span("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 60, 10),
        span("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 100, 10),
        span("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 100, 10),
        {"ph": "M", "name": "process_name"},
    ]
    found = read_trace(events, steps=2)
    assert (found.operators, found.launches, found.kernels) == (0.5, 1.0, 1.0)
    assert (found.copies, found.pageable_copies) == (1.0, 0.5)
    assert found.waits == {"cudaStreamSynchronize": 1}
    assert found.idle == pytest.approx(0.5)
    assert found.step_ms == pytest.approx(0.05)
    assert torch.profiler.ProfilerActivity.CUDA
