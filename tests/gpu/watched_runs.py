"""Runs of the job in this process whose training is watched by further callbacks; the devices the tests run on."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from inat_job.commands import train
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.training import run as story

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
on_both = pytest.mark.parametrize("device", ["cpu", GPU])
"""On the CPU in `make test`, on the card in `make gpu`."""
on_both_slowly = pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.soak), GPU])
"""The same for what takes too long for `make test`."""


class QuietStop(StopFlag):
    """A stop flag that leaves pytest's signal handlers alone."""

    def install(self) -> None:
        """Does nothing."""


@contextmanager
def watching(*callbacks: Callback) -> Iterator[None]:
    """Every training of a job in the block calls these too, after the job's own callbacks."""
    make = story.make_trainer

    def with_callbacks(execution: Any, settings: Any, given: Any, *rest: Any, **named: Any) -> Trainer:
        return make(execution, settings, [*given, *callbacks], *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "make_trainer", with_callbacks)
        yield


def run(settings: Settings, *callbacks: Callback, stop: StopFlag | None = None) -> None:
    """Run the whole job. Raises its errors."""
    with watching(*callbacks):
        train.run(settings, stop or QuietStop(), time.perf_counter())


def folder_of(settings: Settings) -> Path:
    """The run folder."""
    return Path(settings.run.output) / str(settings.run_id)


def report_of(settings: Settings) -> dict[str, Any]:
    """The report of a finished run."""
    return dict(json.loads((folder_of(settings) / "report.json").read_text()))


def last_state(settings: Settings) -> dict[str, Any]:
    """The newest checkpoint."""
    path = max((folder_of(settings) / "checkpoints").glob("*.ckpt"), key=lambda path: int(path.stem))
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def tensors_of(state: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors within nested dictionaries and lists, by their path."""
    if isinstance(state, Tensor):
        return {name: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {path: tensor for key, value in pairs for path, tensor in tensors_of(value, f"{name}/{key}").items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names of tensors that are not bit-equal."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name].to(one[name].device))]


def weight_distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The distance of all tensors together, relative to the norm of `other`."""
    squared = sum(float((one[name].double() - each.double()).norm() ** 2) for name, each in other.items())
    return float((squared / sum(float(each.double().norm() ** 2) for each in other.values())) ** 0.5)


class StepLosses(Callback):
    """The loss of every step, kept on the device until it is asked for."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach().clone())

    @property
    def values(self) -> Tensor:
        """float32 (steps,), on the CPU."""
        return torch.stack(self._losses).float().cpu()


class AtStep(Callback):
    """Calls `act` after an optimiser step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self._step, self._act = step, act

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            self._act()
