"""Small runs of the job in this process, for the tests of its commands."""

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
SMALLER_B = {"model__backbone": "mobilenet_v3_small"}  # its checkpoints are a fifth as large


class StopAfter(StopFlag):
    """A stop flag that is set after the job has read it `checks` times, which places a stop anywhere in its work."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self._checks_left = checks

    def __call__(self) -> bool:
        self._checks_left -= 1
        return self._checks_left < 0 or super().__call__()

    def install(self) -> None:
        """Does nothing: pytest's signal handlers stay."""


def settings_in(folder: Path, archive: Path, part: str = "a", **changes: Any) -> Settings:
    """Small settings of a part; `dotted__names` stand for section.field."""
    flags = {
        "data.uri": str(archive),
        "data.cache_dir": str(folder / "cache"),
        "data.image_size": "32",
        "run.output": str(folder / "runs"),
        "run.run_id": "r",
        "train.epochs": "2",
        "train.batch_size": "8",
        "tracker.mode": "off",
        "run.pictures": "false",  # which take longer than the run
        **(SMALL_A if part == "a" else SMALL_B),
    }
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    return configure(part, flags, [], None).settings


def run(settings: Settings, stop_after: int = 10**9) -> None:
    """Train in this process; the stop flag is set after it was read `stop_after` times."""
    train.run(settings, StopAfter(stop_after), time.perf_counter())


def report_of(settings: Settings) -> dict[str, Any]:
    """The report of a finished run."""
    store = open_store(f"{settings.run.output}/{settings.run_id}")
    return json.loads(store.read("report.json"))


def model_of(settings: Settings) -> bytes:
    """The bytes of a finished run's model.safetensors."""
    return open_store(f"{settings.run.output}/{settings.run_id}").read("model/model.safetensors")
