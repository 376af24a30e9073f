"""`test`: evaluate checkpoints of finished or interrupted runs, or exported models, without training."""

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from inat_job import events
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.command_options import EvaluationOptions
from inat_job.configuration import TEST_TAKES, Configuration, configure, options_of_all_parts, takes
from inat_job.data.cache_index import Cache
from inat_job.data.module import ImageDataModule
from inat_job.errors import ConflictError, UsageError
from inat_job.host import environment
from inat_job.host.device_faults import device_errors
from inat_job.job_status import STATUS
from inat_job.options import public_uri
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.platforms.settings_layer import around
from inat_job.reporting.publish import publish
from inat_job.reporting.tracker_check import check_tracking
from inat_job.run import outputs
from inat_job.run.prepare_images import prepare_images
from inat_job.run.run_state import CONFIG, lease_run, open_run, read_config, refuse_unowned_checkpoints, run_config
from inat_job.run.sweep_folder import refuse_to_write_in_sweep
from inat_job.run.timing import Clock
from inat_job.settings import FOLDERS, Settings
from inat_job.signals import Stop, StopFlag, never
from inat_job.storage.run_folder import RunFolder
from inat_job.telemetry import heartbeat
from inat_job.training.context import RunContext, check_classes
from inat_job.training.execution import Execution, decide, known_decisions
from inat_job.training.introduction import introduce
from inat_job.training.results import (
    Predictions,
    draw_pictures,
    evaluation_images,
    make_report,
    predict_mirrored,
    predict_splits,
    tracked,
)
from inat_job.training.trained_model import TrainedModel, find_trained, load_trained, temperature_of

_FINDING_TAKES = (*(each for each in TEST_TAKES if each != "data"), "data.cache_dir")
"""What decides where a run is found. Its own settings are not known yet, which sizes given here may go with."""

_KEPT = ("channels_last", "deterministic", "threads")


def settings_of(
    checkpoint: str,
    flags: Mapping[str, Any],
    sets: Sequence[str],
    file: str | None,
    stop: Stop = never,
    platform: Platform = NO_PLATFORM,
) -> Configuration:
    """The settings of the run or model of `--checkpoint`, overridden by what is given, but for its precision.

    The run is read with the given storage settings, before its part is known.
    """
    for key in (text.partition("=")[0] for text in sets):
        if key in options_of_all_parts() and not takes(TEST_TAKES, key):
            raise UsageError(f"--set {key} does nothing here: the run that --checkpoint names fixes it.")
    said = around(platform, "a", TEST_TAKES)
    finding = [text for text in sets if takes(_FINDING_TAKES, text.partition("=")[0])]
    given = configure("a", flags, finding, file, taken=_FINDING_TAKES, around=said)
    stored = find_trained(given.settings, checkpoint, stop).config
    train = {field: value for field, value in stored["settings"].get("train", {}).items() if field != "precision"}
    if "train.batch_size" in given.given:  # which the run's slices need not divide
        train["accumulate"] = 1
    return configure(stored["part"], flags, sets, file, {**stored["settings"], "train": train}, TEST_TAKES, said)


def run_all(
    made: Sequence[Configuration],
    checkpoints: Sequence[str],
    request: EvaluationOptions,
    stop: StopFlag,
    started: float,
    platform: Platform = NO_PLATFORM,
) -> None:
    """Test each checkpoint with its settings, each in a run folder of its own; at the end, the results of several.

    Raises UsageError for several with one run id, ConflictError for several where a platform collects one result.
    """
    if len(checkpoints) > 1:
        _check_several(made, platform)
    found = [find_trained(each.settings, name, stop) for each, name in zip(made, checkpoints, strict=True)]
    results = []
    for each, trained, run_id in zip(made, found, _run_ids(found), strict=True):
        report = run(each, trained, run_id, request, stop, started, platform)
        results.append({"checkpoint": report["checkpoint"]["uri"], **_result(report)})
        started = time.perf_counter()
    if len(results) > 1:
        events.emit("tested", results=results)


def run(
    made: Configuration,
    trained: TrainedModel,
    run_id: str,
    request: EvaluationOptions,
    stop: StopFlag,
    started: float,
    platform: Platform = NO_PLATFORM,
) -> dict[str, Any]:
    """Write a run folder of its own, `run_id` unless the settings name one, with the report, which is returned.

    Raises ConflictError when the data have other classes.
    """
    if platform.num_nodes > 1:
        raise ConflictError(
            f"{platform.name} gives this test {platform.num_nodes} machines, and a test uses one: submit it with one."
        )
    settings = made.settings
    outputs.check_folders(platform)
    check_tracking(settings.tracker, stop)
    folder = open_run(settings, settings.run.run_id or run_id, stop)
    STATUS.run, STATUS.run_id = folder.uri, folder.run_id
    _claim(folder)
    with (
        heartbeat.emit_heartbeats(),
        lease_run(folder, settings.run.lease_seconds, stop),
        device_errors(training=False),
    ):
        _claim(folder)
        context = _context(made, folder, trained, stop, Clock(started))
        report = _test(context, trained, request, made.given)
    outputs.collect_results(platform, folder)
    return report


def _context(made: Configuration, folder: RunFolder, trained: TrainedModel, stop: StopFlag, clock: Clock) -> RunContext:
    settings = made.settings
    if "data.uri" in made.given and "data.labels" not in made.given and settings.data.labels != FOLDERS:
        labels = public_uri(settings.data.labels)
        events.warn(
            f"The classes and splits of --data are those of the run's --labels, {labels}: add --labels none, if the "
            "folders are to decide."
        )
    environment.set_cublas_workspace()
    execution = _execution(settings, trained.config["execution"], made.given)
    execution.apply()
    images = _images(prepare_images(settings, clock, stop), settings, on_gpu=execution.accelerator == "cuda")
    check_classes(trained.folder, trained.config, images.cache.index.classes)
    return RunContext(settings, folder, images, execution, CheckpointIndex(trained.folder, stop), clock, stop)


def _test(
    context: RunContext, trained: TrainedModel, request: EvaluationOptions, given: Collection[str]
) -> dict[str, Any]:
    architecture, classifier = context.build_network(pretrained=False)
    context.move_images_to_gpu()
    weights, held_out = load_trained(context, classifier, trained)
    classes = context.images.cache.index.classes
    config = run_config(context.settings, context.execution.as_dict(), command="test", classes=classes)
    context.folder.write_json(CONFIG, config)
    introduce(context, architecture, None)
    with tracked(context) as tracker, device_errors(training=False):
        context.clock.mark_first_step(None)
        table = predict_splits(context, classifier, validation=held_out)
        tta = predict_mirrored(context, classifier, table) if request.tta == "flip" else None
        predictions = Predictions(table, temperature_of(trained, table), tta)
        pictures = draw_pictures(context, architecture.network, predictions)
        report = make_report(context, architecture, weights, predictions, tracker, "test")
        report = _without_unknown(report, trained) | {"given": sorted(given)}
        images = evaluation_images(context) if pictures else None
        publish(context.folder, tracker, report, table, pictures, images=images)
    return report


def _without_unknown(report: dict[str, Any], trained: TrainedModel) -> dict[str, Any]:
    """The report, for a model without its run less the training settings, which would be the defaults."""
    if trained.has_run:
        return report
    known = (*TEST_TAKES, "model")
    settings = {
        section: {field: value for field, value in fields.items() if takes(known, f"{section}.{field}")}
        for section, fields in report["settings"].items()
    }
    return report | {"settings": settings, "model": report["model"] | {"trainable_parameters": None}}


def _check_several(made: Sequence[Configuration], platform: Platform) -> None:
    if run_id := made[0].settings.run.run_id:
        raise UsageError(
            f"--run-id is {run_id}, but there are {len(made)} checkpoints, each with a run folder of its own: leave "
            "it out."
        )
    if platform.results_folder:
        raise ConflictError(f"{platform.name} collects the result of one checkpoint: submit one job for each.")


def _run_ids(found: Sequence[TrainedModel]) -> list[str]:
    """The run ids of the tests: test-<run>, or where that is not unique, followed by the step."""
    plain = [f"test-{each.name}"[:64] for each in found]
    details = [f"-{each.detail}" if plain.count(name) > 1 else "" for each, name in zip(found, plain, strict=True)]
    names = [name[: 64 - len(detail)] + detail for name, detail in zip(plain, details, strict=True)]
    for each, name in zip(found, names, strict=True):
        if names.count(name) > 1:
            raise UsageError(
                f"--checkpoint names {each.folder.uri} twice, or another of the same name: test them one by one, each "
                "with its own --run-id."
            )
    return names


def _result(report: dict[str, Any]) -> dict[str, Any]:
    """A row of the table at the end."""
    names, tta = ("accuracy", "ci95", "correct", "n"), report.get("test_tta")
    return {**{name: report["test"][name] for name in names}, "tta_accuracy": tta and tta["accuracy"]}


def _claim(folder: RunFolder) -> None:
    """Raise ConflictError unless the folder is free, or an earlier test's."""
    earlier = read_config(folder)
    if earlier is None:
        refuse_to_write_in_sweep(folder.store)
        refuse_unowned_checkpoints(folder)
    elif earlier.get("command") != "test":
        raise ConflictError(f"{folder.uri} is a training run: give the test another --run-id.")


def _execution(settings: Settings, stored: Mapping[str, Any], given: Collection[str]) -> Execution:
    """The run's arithmetic if this is the same kind of device, overridden by what is given; `auto` is float32."""
    stored = known_decisions(stored)
    precision = "fp32" if settings.train.precision == "auto" else settings.train.precision
    fresh = decide(dataclasses.replace(settings.train, compile=False, precision=precision), None)  # compiles nothing
    fresh = dataclasses.replace(fresh, evaluation_precision=precision).of_evaluation()
    if stored.get("accelerator") != fresh.accelerator:
        return fresh
    kept = {name: stored[name] for name in _KEPT if name in stored and f"train.{name}" not in given}
    return dataclasses.replace(fresh, **kept)


def _images(cache: Cache, settings: Settings, on_gpu: bool) -> ImageDataModule:
    """The splits; batches are no larger than the training split, which a test does not need to be filled."""
    least = ImageDataModule(cache, dataclasses.replace(settings.train, batch_size=2, accumulate=1), settings.data)
    batch_size = min(settings.train.batch_size, len(least.train_rows))
    train = dataclasses.replace(settings.train, batch_size=batch_size, accumulate=1)
    return ImageDataModule(cache, train, settings.data, on_gpu=on_gpu)
