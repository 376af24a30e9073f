"""`bench`: the rate of each stage of a run beside its limit, the slowest stage, and plain Lightning for comparison."""

import dataclasses
import json
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inat_job import events
from inat_job.address import expanded
from inat_job.bench import ingest_stages, synthetic, whole_job
from inat_job.bench.measurement import Measurement, bottleneck, format_number, run_durations, shares_of_total, table
from inat_job.bench.prepared_run import PreparedRun, prepare_run
from inat_job.command_options import BenchOptions
from inat_job.data.layout import BY_FOLDERS
from inat_job.errors import UsageError
from inat_job.ingest import data_source, kinds
from inat_job.ingest.data_source import DataSource
from inat_job.run.prepare_images import arrangement
from inat_job.run.run_state import storage_options
from inat_job.settings import FOLDERS, Settings
from inat_job.signals import StopFlag

_SYNTHETIC_SIDE = 480
"""Pixels of the longer side of generated images, about that of a photo in the usual data sets."""


def run(settings: Settings, request: BenchOptions, stop: StopFlag, started: float) -> None:
    """Measure what the request asks for, and report it. Raises UsageError for a --json in no folder."""
    if request.json and not Path(request.json).absolute().parent.is_dir():
        raise UsageError(f"--json is {request.json}, and its folder does not exist: create it, or name another.")
    if (settings.train.devices or 1) * (settings.train.num_nodes or 1) > 1:
        raise UsageError("bench measures one device: unset train.devices and train.num_nodes.")
    epochs, settings = settings.train.epochs, _alone(settings, request)
    with _scratch(settings) as scratch:
        settings = _with_images(settings, request, scratch, stop)
        found, facts = _measure(settings, request, scratch, stop, started)
    _report(request, found, facts, epochs)


def _alone(settings: Settings, request: BenchOptions) -> Settings:
    """The run without what ends it early and without a tracker, under a name of its own."""
    epochs = max(settings.train.epochs, request.runs + 1) if request.trains else settings.train.epochs
    train = dataclasses.replace(
        settings.train, epochs=epochs, min_images_seen=0, max_time=None, early_stop=None, final=False
    )
    run = dataclasses.replace(settings.run, run_id=f"bench-{secrets.token_hex(4)}", force=False, init_from=None)
    tracker = dataclasses.replace(settings.tracker, mode="off")
    return dataclasses.replace(settings, train=train, run=run, tracker=tracker)


@contextmanager
def _scratch(settings: Settings) -> Iterator[Path]:
    """A folder for the files of the bench, on the disk of the cache."""
    cache = Path(settings.data.cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="bench-") as folder:
        yield Path(folder)


def _with_images(settings: Settings, request: BenchOptions, scratch: Path, stop: StopFlag) -> Settings:
    """The settings with the images of the request: generated ones, or those of the settings several times."""
    data = settings.data
    if request.synthetic:
        if data.labels != FOLDERS or data.test_share is not None:
            raise UsageError("--synthetic has classes and a test set of its own: leave out --labels and --test-share.")
        folder = Path(data.cache_dir) / "synthetic"
        data = dataclasses.replace(data, uri=str(synthetic.synthetic(folder, request.synthetic, _SYNTHETIC_SIDE)))
    if request.repeat > 1:
        source = _source(dataclasses.replace(settings, data=data), stop)
        path = synthetic.repeated(source, request.repeat, scratch / "repeated.zip")
        data = dataclasses.replace(data, uri=str(path), labels=FOLDERS)
    return dataclasses.replace(settings, data=data)


def _source(settings: Settings, stop: StopFlag) -> DataSource:
    data, options = settings.data, storage_options(settings.storage)
    return data_source.find(data.uri, Path(data.cache_dir), options, stop, arrangement(data, options, stop))


def _measure(
    settings: Settings, request: BenchOptions, scratch: Path, stop: StopFlag, started: float
) -> tuple[list[Measurement], dict[str, Any]]:
    found: list[Measurement] = []
    source = _source(settings, stop)
    if "pull" in request.stages and not kinds.is_archive(urlsplit(settings.data.uri).path):
        events.warn("The stage pull is left out: it is measured on an archive, and --data is not one.")
    elif "pull" in request.stages:
        events.emit("bench", stage="pull")
        data, options = settings.data, storage_options(settings.storage)
        found += ingest_stages.pull(data.uri, options, data.eval_size, scratch, request.runs, stop, source.arrangement)
    if "decode" in request.stages:
        events.emit("bench", stage="decode")
        archive = _archive(settings, source, scratch)
        local = data_source.find(str(archive), scratch, storage_options(settings.storage), stop)
        found += ingest_stages.decode(local, archive, settings.data.eval_size, scratch, request.runs, stop)
    with prepare_run(settings, request, stop, started) as bench:
        found += _in_process(bench, source, scratch)
        facts = bench.facts()
        classes = len(bench.work.images.cache.index.classes)
        unpacked = scratch / "unpacked"
        if request.end_to_end and not unpacked.exists():
            whole_job.unpack(source, bench.work.images, unpacked)
    if "start" in request.stages:
        events.emit("bench", stage="start")
        found += whole_job.first_step(settings, classes, scratch, request.runs)
    if request.end_to_end:
        events.emit("bench", stage="end to end")
        epochs = request.baseline_epochs or settings.train.epochs
        found += whole_job.end_to_end(settings, unpacked, scratch, request.runs, epochs)
    if request.scale:
        events.emit("bench", stage="scale")
        found += whole_job.growth(settings, source, scratch, request.scale)
    return found, facts


def _in_process(bench: PreparedRun, source: DataSource, scratch: Path) -> list[Measurement]:
    if not bench.request.baseline:
        return bench.measure({})
    events.emit("bench", stage="unpack")
    folder = whole_job.unpack(source, bench.work.images, scratch / "unpacked")
    with whole_job.baseline_in_lockstep(bench.work.settings, folder, bench.request.runs + 1) as epoch:
        return bench.measure({"baseline epoch": epoch})


def _archive(settings: Settings, source: DataSource, scratch: Path) -> Path:
    """The data set as an archive that other processes can read, and whose folders alone decide."""
    path = Path(expanded(settings.data.uri))
    if path.is_file() and source.arrangement == BY_FOLDERS:
        return path
    return synthetic.repeated(source, 1, scratch / "archive.zip")


def _report(request: BenchOptions, found: list[Measurement], facts: dict[str, Any], epochs: int) -> None:
    """All figures to --json or, for a machine, the log; the table to a person, the last line to both."""
    bound, shares = bottleneck(found), shares_of_total(run_durations(found, facts["images"], epochs))
    figures = {
        **facts,
        "bound_by": bound.name if bound else None,
        "run": {"epochs": epochs, "shares": shares},
        "measured": [each.as_dict() for each in found],
    }
    if request.json:
        Path(request.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    elif events.is_json():
        events.emit("bench", **figures)
    parts = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    lines = [table(found), *([f"Of a run of {epochs} epochs: {parts}."] if len(shares) > 1 else [])]
    events.close()
    stream = sys.stderr if events.is_json() else sys.stdout  # stdout holds nothing but JSON for a machine
    stream.write("\n".join(lines) + "\n")
    stream.flush()
    message = f"Bound by: {bound.name}, {format_number(bound.median)} {bound.unit}." if bound else "Done."
    events.emit("done", message=message)
