"""Steps in the middle of training as torch's profiler sees them: launches, copies, waits and idle time of the card."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Callback

FIRST_STEP = 1
"""Counted from 0: the first step of an epoch begins with work that the others do not have."""

Event = dict[str, Any]

_KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")
_CALLS = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class StepTrace:
    """What a training step does, on average; `idle` is the share of time in which the card does nothing.

    `waits` are calls in which the CPU waits for the card, `pageable_copies` are copies from ordinary memory, which wait
    too.
    """

    steps: int
    operators: float
    launches: float
    kernels: float
    copies: float
    pageable_copies: float
    waits: dict[str, int]
    idle: float | None
    step_ms: float


def read_trace(events: Iterable[Event], steps: int) -> StepTrace:
    """Count what is in a trace in Chrome's format, as torch.profiler exports it (times in microseconds)."""
    spans = [event for event in events if event.get("ph") == "X"]
    on_card = [event for event in spans if event.get("cat") in _KERNELS]
    calls = Counter(event["name"] for event in spans if event.get("cat") in _CALLS)
    copied = [event["name"] for event in on_card if event["cat"] == "gpu_memcpy" and "HtoD" in event["name"]]
    launches = sum(count for name, count in calls.items() if "Launch" in name)
    began, ended = min(event["ts"] for event in spans), max(event["ts"] + event["dur"] for event in spans)
    if on_card:
        began = min(event["ts"] for event in on_card)
        ended = max(event["ts"] + event["dur"] for event in on_card)
    return StepTrace(
        steps=steps,
        operators=sum(event.get("cat") == "cpu_op" for event in spans) / steps,
        launches=launches / steps,
        kernels=sum(event["cat"] == "kernel" for event in on_card) / steps,
        copies=len(copied) / steps,
        pageable_copies=sum("Pageable" in name for name in copied) / steps,
        # The last one is the profiler's own, as it stops.
        waits={n: c for n, c in calls.items() if "Synchronize" in n and n != "cudaDeviceSynchronize"},
        idle=1 - _covered(on_card) / (ended - began) if on_card else None,
        step_ms=(ended - began) / steps / 1e3,
    )


def _covered(events: list[Event]) -> float:
    """Microseconds in which at least one of the events is under way."""
    total, until = 0.0, float("-inf")
    for start, duration in sorted((event["ts"], event["dur"]) for event in events):
        total += max(0.0, start + duration - max(start, until))
        until = max(until, start + duration)
    return total


class TraceSteps(Callback):
    """Profiles `steps` steps of the second epoch, or of the first if `epoch` is 0; the result is in `trace`."""

    def __init__(self, steps: int, epoch: int = 1) -> None:
        self._steps, self._epoch = steps, epoch
        self._profiler: Any = None
        self.trace: StepTrace | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self._epoch, FIRST_STEP):
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=kinds)
            self._profiler.start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._profiler and batch_idx == FIRST_STEP + self._steps - 1:
            self._profiler.stop()
            with TemporaryDirectory() as folder:
                path = Path(folder, "trace.json")
                self._profiler.export_chrome_trace(str(path))
                self.trace = read_trace(json.loads(path.read_text())["traceEvents"], self._steps)
            self._profiler = None


class RefuseWaits(Callback):
    """Has torch raise an error at every call that waits for the card, in any thread, for steps 1 to 8 of each epoch.

    The steps before and after read the loss, or begin the epoch. https://docs.pytorch.org/docs/stable/generated/
    torch.cuda.set_sync_debug_mode.html
    """

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST_STEP:
            self._set("error")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += FIRST_STEP <= batch_idx <= FIRST_STEP + 7
        if batch_idx == FIRST_STEP + 7:
            self._set("default")

    def _set(self, mode: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode(mode)
