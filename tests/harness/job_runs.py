"""Small runs in one process, as the tests of the jobs make them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inat_job
from inat_job.commands import train
from inat_job.configuration import configure
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage import open_store

Make = Callable[..., Settings]

SCHEMA = json.loads((Path(inat_job.__file__).parent / "report.schema.json").read_text())
SMALL_A = {"model.filters": "4", "model.dense": "8"}
SMALL_B = {"model.backbone": "resnet18", "model.weights": "none"}
SMALLER_B = {"model__backbone": "mobilenet_v3_small"}  # whose checkpoints are a fifth of those


class StopAfter(StopFlag):
    """A stop flag that a signal sets while the job asks for the n-th time."""

    def __init__(self, asked: int) -> None:
        super().__init__()
        self._left = asked

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0 or super().__call__()

    def install(self) -> None:
        """Leave pytest's handlers alone."""


def settings_in(place: Path, archive: Path, which: str = "a", **changes: Any) -> Settings:
    """Small settings of a part; `dotted__names` stand for section.field."""
    flags = {
        "data.uri": str(archive),
        "data.cache_dir": str(place / "cache"),
        "data.image_size": "32",
        "run.output": str(place / "runs"),
        "run.run_id": "r",
        "train.epochs": "2",
        "train.batch_size": "8",
        "tracker.mode": "off",
        **(SMALL_A if which == "a" else SMALL_B),
    }
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    return configure(which, flags, [], None).settings


def run(settings: Settings, asked: int = 10**9) -> None:
    train.run(settings, StopAfter(asked), time.perf_counter())


def report_of(settings: Settings) -> dict[str, Any]:
    store = open_store(f"{settings.run.output}/{settings.run_id}")
    return json.loads(store.read("report.json"))


def model_of(settings: Settings) -> bytes:
    return open_store(f"{settings.run.output}/{settings.run_id}").read("model/model.safetensors")
