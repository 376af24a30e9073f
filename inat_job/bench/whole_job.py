"""The job and the baseline as whole processes: time to the first step, end to end, epoch by epoch, and as data grows.

The baseline is the plain Lightning program in plain_lightning.py, on the same images as files in folders.
"""

import dataclasses
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inat_job.bench import children, synthetic
from inat_job.bench.measurement import Measurement
from inat_job.bench.plain_lightning import BaselineSpec
from inat_job.bench.training_stages import TrainEpoch
from inat_job.data import layout
from inat_job.data.module import ImageDataModule
from inat_job.ingest.data_source import DataSource
from inat_job.settings import FOLDERS, Settings

BUILT = "built"
"""The line that bare_build.py prints at its end."""

FIRST_STEP = r'"event": "phase".*"phase": "train"'

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those that ImageFolder accepts; it detects the format by the content."""


def first_step(settings: Settings, classes: int, scratch: Path, runs: int) -> list[Measurement]:
    """Seconds from a process's start to its first training step, from a prepared cache.

    The limit is importing the libraries and building the network.
    """
    spec = {"part": settings.part, "flags": _flags(settings), "classes": classes}
    bare = children.module("bare_build", json.dumps(spec))
    ours, limits = [], []
    for number in range(runs + 1):
        output = str(scratch / f"start-{number}")
        ended = children.run(children.job(_relocated(settings, output=output)), until=FIRST_STEP)
        limit = children.run(bare, until=BUILT).second_of(BUILT)
        if number:
            ours.append(ended.second_of(FIRST_STEP))
            limits.append(limit)
    return [Measurement("time to first step", "s", tuple(ours), "imports and network", tuple(limits))]


def end_to_end(settings: Settings, unpacked: Path, scratch: Path, runs: int, epochs: int) -> list[Measurement]:
    """The whole job and the whole baseline, alternately, without a prepared cache.

    The baseline is trained for `epochs` epochs, and the time of the others is extrapolated.
    """
    rows = [_job_and_baseline(settings, unpacked, scratch / f"whole-{number}", epochs) for number in range(runs)]
    job_s, from_cache_s, baseline_s, ours, theirs = (tuple(column) for column in zip(*rows, strict=True))
    all_epochs = settings.train.epochs
    extrapolated = f"{epochs} of {all_epochs} epochs trained, the time of the others extrapolated"
    note = "" if epochs == all_epochs else extrapolated
    ratios = tuple(baseline / job for job, baseline in zip(job_s, baseline_s, strict=True))
    return [
        Measurement("whole job", "s", job_s, note="pull and prepare included"),
        Measurement("whole job from a prepared cache", "s", from_cache_s, note="a second one, features computed again"),
        Measurement("whole baseline", "s", baseline_s, note=note),
        Measurement("whole baseline over whole job", "times", ratios),
        Measurement("test accuracy of the job", "", ours),
        Measurement("test accuracy of the baseline", "", theirs, note=note),
    ]


def _job_and_baseline(
    settings: Settings, unpacked: Path, folder: Path, epochs: int
) -> tuple[float, float, float, float, float]:
    """Seconds of the job, of the job from a prepared cache and of the baseline; test accuracies of both."""
    cache = folder / "cache"
    cache.mkdir(parents=True)
    (cache / "weights").symlink_to((Path(settings.data.cache_dir) / "weights").absolute())
    ours = children.run(children.job(_relocated(settings, str(folder), cache_dir=str(cache))))
    report = json.loads((folder / "r" / "report.json").read_text())
    shutil.rmtree(cache / "features", ignore_errors=True)
    again = children.run(children.job(_relocated(settings, str(folder / "again"), cache_dir=str(cache))))
    baseline = children.run(_baseline(settings, unpacked, epochs, lockstep=False))
    result = json.loads(baseline.lines[-1][1])
    rest_s = (settings.train.epochs - epochs) * statistics.median(result["seconds"][1:] or result["seconds"])
    return ours.seconds, again.seconds, baseline.seconds + rest_s, report["test"]["accuracy"], result["accuracy"]


def growth(settings: Settings, source: DataSource, scratch: Path, factors: Sequence[int]) -> list[Measurement]:
    """The job for one epoch on multiples of the data set: its peak of anonymous memory, and the time per image."""
    train = dataclasses.replace(settings.train, epochs=1)
    settings = dataclasses.replace(settings, train=train)
    rows = [_grown(settings, source, scratch / f"scale-{factor}", factor) for factor in factors]
    found = []
    for name, unit, column in (
        ("peak anonymous memory", "MB", 0),
        ("preparing an image", "ms", 1),
        ("training an image", "ms", 2),
        ("testing an image", "ms", 3),
    ):
        first = rows[0][column]
        for factor, row in zip(factors, rows, strict=True):
            limit = (f"at {factors[0]}x", (first,)) if factor != factors[0] else ("", ())
            found.append(Measurement(f"{name} at {factor}x", unit, (row[column],), *limit))
    return found


def _grown(settings: Settings, source: DataSource, folder: Path, factor: int) -> tuple[float, ...]:
    """Peak memory in MB; milliseconds to prepare, train and test an image."""
    folder.mkdir(parents=True)
    data = synthetic.repeated(source, factor, folder / "images.zip")
    changes = {"uri": str(data), "labels": FOLDERS, "cache_dir": str(folder / "cache")}
    ended = children.run(children.job(_relocated(settings, str(folder), **changes)))
    report = json.loads((folder / "r" / "report.json").read_text())
    timing, counts = report["timing"], report["data"]
    total = counts["n_train"] + counts["n_val"] + counts["n_test"]
    rate = report["throughput"]["train_images_per_s"] or counts["n_train"] / timing["train_s"]
    test_ms = 1e3 * timing["test_s"] / (counts["n_val"] + counts["n_test"])
    return ended.peak_bytes / 1e6, 1e3 * timing["prepare_s"] / total, 1e3 / rate, test_ms


def _relocated(settings: Settings, output: str, **data: Any) -> Settings:
    """The same run with another output, and other data or another cache."""
    run = dataclasses.replace(settings.run, output=output, resume="auto", run_id="r", force=False)
    return dataclasses.replace(settings, run=run, data=dataclasses.replace(settings.data, **data))


def unpack(source: DataSource, images: ImageDataModule, folder: Path) -> Path:
    """Write the images to `folder` as train/, val/ and test/, split as the job splits them; returns `folder`."""
    index, container = images.cache.index, source.open()
    splits = {"train": images.train_rows, "val": images.val_rows, "test": images.test_rows}
    split_of = {index.ids[row]: split for split, rows in splits.items() for row in rows}
    found = layout.find_images(container.names(), index.source, arrangement=source.arrangement)
    if index.test_share is not None:  # which of two ids an image has depends on its contents
        found = [each.assigned(split) for each in found for split in (layout.TRAIN, layout.TEST)]
    names = {each.name: each for each in found if each.id in split_of}
    folder_of = synthetic.class_folders(index.classes)
    for number, (name, read) in enumerate(container.load(list(names))):
        image = names[name]
        suffix = Path(image.id).suffix.lower()
        file = f"{number:07d}{suffix if suffix in _SUFFIXES else '.jpg'}"
        path = folder / split_of[image.id] / folder_of[image.label] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(read())
    return folder


@contextmanager
def baseline_in_lockstep(settings: Settings, folder: Path, epochs: int) -> Iterator[TrainEpoch]:
    """A function that trains the baseline for one epoch, and returns its images per second."""
    with children.line_server(_baseline(settings, folder, epochs, lockstep=True)) as child:
        first = True

        def train_epoch() -> float:
            nonlocal first
            if not first:  # it starts the first epoch by itself, while others warm up too
                child.send()
            first = False
            return float(json.loads(child.receive())["rate"])

        yield train_epoch


def _flags(settings: Settings) -> dict[str, Any]:
    """The settings as another process takes them, in any working directory."""
    flags = settings.anchored().by_key()
    flags["data.cache_dir"] = str(Path(settings.data.cache_dir).absolute())
    return {key: value for key, value in flags.items() if value is not None}


def _baseline(settings: Settings, folder: Path, epochs: int, lockstep: bool) -> list[str]:
    """The command line of the baseline."""
    spec = BaselineSpec(settings.part, _flags(settings), str(folder.absolute()), epochs, lockstep)
    return children.module("plain_lightning", json.dumps(dataclasses.asdict(spec)))
