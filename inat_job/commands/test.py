"""`test`: evaluate the checkpoint of a finished or interrupted run on the test split, without training."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest
from inat_job.configuration import TEST_TAKES, Configuration, configure, options_of_all_parts, takes
from inat_job.data.cache_index import Cache
from inat_job.data.module import ImageDataModule
from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.host import environment
from inat_job.job_status import STATUS
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.platforms.settings_layer import around
from inat_job.reporting.publish import publish
from inat_job.run import folders, outputs
from inat_job.run.prepare_images import prepare_images
from inat_job.run.run_state import CONFIG, HeldRun, check_empty, config_of, hold_run, read_config
from inat_job.run.timing import Clock
from inat_job.settings import Settings, public_uri
from inat_job.signals import Stop, StopFlag, never
from inat_job.storage import attempts
from inat_job.storage.run_folder import RunFolder
from inat_job.telemetry import heartbeat
from inat_job.training import context
from inat_job.training.context import RunContext
from inat_job.training.execution import Execution, decide
from inat_job.training.introduction import introduce

_KEPT = ("precision", "channels_last", "deterministic", "threads")


@dataclass(frozen=True)
class Tested:
    """The run that is tested, its config.json, and the step of the checkpoint that is meant, if not the best."""

    folder: RunFolder
    stored: dict[str, Any]
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
    place: Platform = NO_PLATFORM,
) -> Configuration:
    """The settings of the run that `--checkpoint` means, with what is given on top and has an effect.

    Where the run itself is read with the given storage settings, which part it is being unknown yet.
    """
    for key in (text.partition("=")[0] for text in sets):
        if key in options_of_all_parts() and not takes(TEST_TAKES, key):
            raise UsageError(f"--set {key} does nothing here: the run that --checkpoint names fixes it.")
    said = around(place, "a", TEST_TAKES)
    given = configure("a", flags, sets, file, taken=TEST_TAKES, around=said)
    stored = _config(folders.folder_of(given.settings, locate(checkpoint)[0], stop))
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
    place: Platform = NO_PLATFORM,
) -> None:
    """Write a run folder of its own, `test-<run-id>` by default, with the report, which the platform gets too.

    `given` are the settings that are not the run's own. Raises ConflictError when the data have other classes.
    """
    if place.world > 1:
        raise ConflictError(f"{place.name} gives this test {place.world} machines, and it can use one: submit it so.")
    outputs.check(place)
    name, step = locate(checkpoint)
    tested = folders.folder_of(settings, name, stop)
    stored = _config(tested)
    folder = folders.run_folder(settings, settings.run.run_id or f"test-{tested.run_id}"[:64], stop)
    STATUS.run, STATUS.run_id = folder.uri, folder.run_id
    _claim(folder)
    with heartbeat.beating(), hold_run(folder, settings.run.lease_seconds, stop) as held:
        _claim(folder)
        _evaluate(settings, held, Tested(tested, stored, step), stop, Clock(started), given)
    outputs.collect(place, folder)


def _evaluate(
    settings: Settings, held: HeldRun, tested: Tested, stop: StopFlag, clock: Clock, given: Collection[str]
) -> None:
    folder, checkpoints = held.folder, CheckpointIndex(tested.folder, stop)
    environment.settle_cublas()
    execution = _execution(settings, tested.stored["execution"], given)
    execution.apply()
    images = _images(prepare_images(settings, clock, stop), settings)
    classes = images.cache.index.classes
    context.check_classes(tested.folder, tested.stored, classes)
    work = RunContext(settings, folder, images, execution, checkpoints, clock, stop)
    architecture, classifier = context.network(work, pretrained=False)
    context.reside(work)
    checkpoints.discover()  # not before: a run that goes on takes new ones and lets go of old ones
    manifest, path = checkpoints.best() if tested.step is None else checkpoints.at(tested.step)
    context.load_weights(classifier, path)
    folder.write_json(CONFIG, config_of(settings, execution.as_dict(), command="test", classes=classes))
    introduce(work, architecture, None)
    with context.tracked(settings, folder) as tracker:
        clock.first_step(None)
        measured = _measure(work, classifier, manifest)
        history = attempts.history(tested.folder.store)
        done = context.report_of(work, architecture, manifest, tracker, measured, history)
        publish(folder, held.lease, tracker, done)


def _claim(folder: RunFolder) -> None:
    """Raise ConflictError unless the folder is free, or an earlier test's."""
    earlier = read_config(folder)
    if earlier is None:
        check_empty(folder)
    elif earlier.get("command") != "test":
        raise ConflictError(f"{folder.uri} is a training run: give the test another --run-id.")


def _execution(settings: Settings, stored: Mapping[str, Any], given: Collection[str]) -> Execution:
    """The run's own arithmetic where this is the same kind of device, but for what was given."""
    fresh = decide(settings.train, None)
    if stored.get("accelerator") != fresh.accelerator:
        return fresh
    kept = {name: stored[name] for name in _KEPT if name in stored and f"train.{name}" not in given}
    return dataclasses.replace(fresh, **kept)


def _images(cache: Cache, settings: Settings) -> ImageDataModule:
    """The splits; batches are no larger than the training split, which a test does not need to be filled."""
    least = ImageDataModule(cache, dataclasses.replace(settings.train, batch_size=2, accumulate=1))
    batch_size = min(settings.train.batch_size, len(least.train_rows))
    return ImageDataModule(cache, dataclasses.replace(settings.train, batch_size=batch_size, accumulate=1))


def _measure(work: RunContext, classifier: Any, manifest: Manifest) -> dict[str, Any]:
    """Test, and validation where it is the one that the run held out: of other data it would be no validation."""
    same = manifest.split_digest == work.images.split_digest
    return {
        "val": context.evaluate(work, classifier, work.images.val_rows, "validation") if same else None,
        "test": context.evaluate(work, classifier, work.images.test_rows, "test"),
    }


def _config(folder: RunFolder) -> dict[str, Any]:
    stored = read_config(folder)
    if stored is None:
        raise BadDataError(f"{folder.uri} holds no run: check --checkpoint.")
    return stored
