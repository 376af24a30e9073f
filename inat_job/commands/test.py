"""`test`: evaluate the checkpoint of a finished or interrupted run on the test split, without training."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.configuration import TEST_TAKES, Configuration, configure, options_of_all_parts, takes
from inat_job.data.cache_index import Cache
from inat_job.data.module import ImageDataModule
from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.host import environment
from inat_job.host.device_faults import device_errors
from inat_job.job_status import STATUS
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.platforms.settings_layer import around
from inat_job.reporting.publish import publish
from inat_job.reporting.tracking import require_key
from inat_job.run import outputs
from inat_job.run.prepare_images import prepare_images
from inat_job.run.run_state import (
    CONFIG,
    LeasedRun,
    lease_run,
    open_run,
    read_config,
    refuse_unowned_checkpoints,
    run_config,
)
from inat_job.run.timing import Clock
from inat_job.settings import Settings, public_uri
from inat_job.signals import Stop, StopFlag, never
from inat_job.storage import attempts
from inat_job.storage.run_folder import RunFolder
from inat_job.telemetry import heartbeat
from inat_job.training.context import RunContext, check_classes, load_weights
from inat_job.training.execution import Execution, decide, keep_precision, known_decisions
from inat_job.training.introduction import introduce
from inat_job.training.results import evaluate_splits, make_report, tracked

_KEPT = ("precision", "channels_last", "deterministic", "threads")


@dataclass(frozen=True)
class TestedRun:
    """The run that is tested, its config.json, and the step of the checkpoint to test, if not the best."""

    folder: RunFolder
    config: dict[str, Any]
    step: int | None


def locate(checkpoint: str) -> tuple[str, int | None]:
    """The run that `--checkpoint` means, and the step of the one checkpoint in it, if it names one."""
    run, slash, file = checkpoint.rstrip("/").rpartition("/checkpoints/")
    if not slash:
        return checkpoint, None
    step = file.removesuffix(".ckpt")
    if not step.isdigit():
        raise BadDataError(f"--checkpoint is {public_uri(checkpoint)}: name a run folder, or one <step>.ckpt in it.")
    return run, int(step)


def settings_of(
    checkpoint: str,
    flags: Mapping[str, Any],
    sets: Sequence[str],
    file: str | None,
    stop: Stop = never,
    platform: Platform = NO_PLATFORM,
) -> Configuration:
    """The settings of the run that `--checkpoint` means, with what is given on top and has an effect.

    Where the run itself is read with the given storage settings, which part it is being unknown yet.
    """
    for key in (text.partition("=")[0] for text in sets):
        if key in options_of_all_parts() and not takes(TEST_TAKES, key):
            raise UsageError(f"--set {key} does nothing here: the run that --checkpoint names fixes it.")
    said = around(platform, "a", TEST_TAKES)
    given = configure("a", flags, sets, file, taken=TEST_TAKES, around=said)
    stored = _config(open_run(given.settings, locate(checkpoint)[0], stop))
    own = stored["settings"]
    if "train.batch_size" in given.given:  # which the run's slices need not divide
        own = {**own, "train": {**own.get("train", {}), "accumulate": 1}}
    return configure(stored["part"], flags, sets, file, own, TEST_TAKES, said)


def run(
    settings: Settings,
    checkpoint: str,
    stop: StopFlag,
    started: float,
    given: Collection[str] = (),
    platform: Platform = NO_PLATFORM,
) -> None:
    """Write a run folder of its own, `test-<run-id>` by default, with the report, which the platform gets too.

    `given` are the settings that are not the run's own. Raises ConflictError when the data have other classes.
    """
    if platform.num_nodes > 1:
        raise ConflictError(
            f"{platform.name} gives this test {platform.num_nodes} machines, and a test uses one: submit it with one."
        )
    outputs.check_folders(platform)
    require_key(settings.tracker.mode, environment.has_wandb_key())
    name, step = locate(checkpoint)
    tested = open_run(settings, name, stop)
    config = _config(tested)
    folder = open_run(settings, settings.run.run_id or f"test-{tested.run_id}"[:64], stop)
    STATUS.run, STATUS.run_id = folder.uri, folder.run_id
    _claim(folder)
    with (
        heartbeat.emit_heartbeats(),
        lease_run(folder, settings.run.lease_seconds, stop) as leased,
        device_errors(training=False),
    ):
        _claim(folder)
        _test(settings, leased, TestedRun(tested, config, step), stop, Clock(started), given)
    outputs.collect_results(platform, folder)


def _test(
    settings: Settings, leased: LeasedRun, tested: TestedRun, stop: StopFlag, clock: Clock, given: Collection[str]
) -> None:
    folder, checkpoints = leased.folder, CheckpointIndex(tested.folder, stop)
    environment.set_cublas_workspace()
    execution = _execution(settings, tested.config["execution"], given)
    execution.apply()
    images = _images(prepare_images(settings, clock, stop), settings, on_gpu=execution.accelerator == "cuda")
    classes = images.cache.index.classes
    check_classes(tested.folder, tested.config, classes)
    context = RunContext(settings, folder, images, execution, checkpoints, clock, stop)
    architecture, classifier = context.build_network(pretrained=False)
    context.move_images_to_gpu()
    checkpoints.discover()  # as late as this, since a run that is still training takes new ones and deletes old ones
    manifest, path = checkpoints.best() if tested.step is None else checkpoints.at_step(tested.step)
    load_weights(classifier, path)
    folder.write_json(CONFIG, run_config(settings, execution.as_dict(), command="test", classes=classes))
    introduce(context, architecture, None)
    with tracked(context) as tracker, device_errors(training=False):
        clock.mark_first_step(None)
        held_out = manifest.split_digest == context.images.split_digest  # or else the run may have trained on them
        splits = evaluate_splits(context, classifier, validation=held_out)
        history = attempts.history(tested.folder.store)
        report = make_report(context, architecture, manifest, tracker, splits, history)
        publish(folder, tracker, report)


def _claim(folder: RunFolder) -> None:
    """Raise ConflictError unless the folder is free, or an earlier test's."""
    earlier = read_config(folder)
    if earlier is None:
        refuse_unowned_checkpoints(folder)
    elif earlier.get("command") != "test":
        raise ConflictError(f"{folder.uri} is a training run: give the test another --run-id.")


def _execution(settings: Settings, stored: Mapping[str, Any], given: Collection[str]) -> Execution:
    """The run's own arithmetic where this is the same kind of device, but for what was given."""
    stored = known_decisions(stored)
    fresh = decide(dataclasses.replace(settings.train, compile=False), None)  # a test compiles nothing
    if stored.get("accelerator") != fresh.accelerator:
        return fresh
    kept = {name: stored[name] for name in _KEPT if name in stored and f"train.{name}" not in given}
    if "precision" in kept:
        kept["precision"] = keep_precision(kept["precision"], settings.train, fresh.accelerator)
    return dataclasses.replace(fresh, **kept)


def _images(cache: Cache, settings: Settings, on_gpu: bool) -> ImageDataModule:
    """The splits; batches are no larger than the training split, which a test does not need to be filled."""
    least = ImageDataModule(cache, dataclasses.replace(settings.train, batch_size=2, accumulate=1), settings.data)
    batch_size = min(settings.train.batch_size, len(least.train_rows))
    train = dataclasses.replace(settings.train, batch_size=batch_size, accumulate=1)
    return ImageDataModule(cache, train, settings.data, on_gpu=on_gpu)


def _config(folder: RunFolder) -> dict[str, Any]:
    stored = read_config(folder)
    if stored is None:
        raise BadDataError(f"{folder.uri} holds no run: check --checkpoint.")
    return stored
