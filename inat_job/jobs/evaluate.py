"""`test`: evaluate the checkpoint of a finished or interrupted run on the test split, without training."""

from collections.abc import Mapping, Sequence
from typing import Any

from inat_job.configuration import Configuration, configure
from inat_job.data.module import Pictures
from inat_job.errors import BadDataError, ConflictError
from inat_job.jobs import folders, stages
from inat_job.jobs.claim import CONFIG, config_of
from inat_job.jobs.clock import Clock
from inat_job.jobs.publish import publish
from inat_job.jobs.stages import Work
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder
from inat_job.training.checkpoints import Checkpoints, Manifest
from inat_job.training.execution import decide


def locate(checkpoint: str) -> tuple[str, int | None]:
    """The run that `--checkpoint` means, and the step of the one checkpoint in it, if it names one."""
    run, slash, file = checkpoint.rstrip("/").rpartition("/checkpoints/")
    if not slash:
        return checkpoint, None
    step = file.removesuffix(".ckpt")
    if not step.isdigit():
        raise BadDataError(f"--checkpoint is {checkpoint}: name a run folder, or one <step>.ckpt in it.")
    return run, int(step)


def settings_of(checkpoint: str, flags: Mapping[str, Any], sets: Sequence[str], file: str | None) -> Configuration:
    """The settings of the run that `--checkpoint` means, with what is given on top.

    Where the run itself is read with the given storage settings, which part it is being unknown yet.
    """
    given = configure("a", flags, sets, file).settings
    stored = _config(folders.folder_of(given, locate(checkpoint)[0]))
    return configure(stored["part"], flags, sets, file, stored["settings"])


def run(settings: Settings, checkpoint: str, stop: StopFlag, started: float) -> None:
    """Write a run folder of its own, `test-<run-id>` by default, with the report."""
    clock = Clock(started)
    name, step = locate(checkpoint)
    tested = folders.folder_of(settings, name)
    stored = _config(tested)
    folder = folders.run_folder(settings, settings.run.run_id or f"test-{tested.run_id}"[:64])
    earlier = folder.read_json(CONFIG)
    if earlier is not None and earlier.get("command") != "test":
        raise ConflictError(f"{folder.uri} is a training run: give the test another --run-id.")
    checkpoints = Checkpoints(tested).discover()
    manifest, path = checkpoints.best() if step is None else checkpoints.at(step)
    execution = decide(settings.train, stored["execution"])
    execution.apply()
    pictures = Pictures(stages.pictures_cache(settings, clock, stop), settings.train)
    work = Work(settings, folder, pictures, execution, checkpoints, clock, stop)
    architecture, classifier = stages.network(work, pretrained=False)
    stages.load_weights(classifier, path)
    folder.write_json(CONFIG, config_of(settings, execution.as_dict(), command="test"))
    with stages.tracked(settings, folder) as tracker:
        measured = _measure(work, classifier, manifest)
        clock.first_step(None)
        done = stages.report_of(work, architecture, manifest, tracker, measured)
        publish(folder, None, tracker, done, [])


def _measure(work: Work, classifier: Any, manifest: Manifest) -> dict[str, Any]:
    """Test, and validation where it is the one that the run held out: of other data it would be no validation."""
    same = manifest.split_digest == work.pictures.split_digest
    return {
        "val": stages.evaluate(work, classifier, work.pictures.val_rows) if same else None,
        "test": stages.evaluate(work, classifier, work.pictures.test_rows),
    }


def _config(folder: RunFolder) -> dict[str, Any]:
    stored = folder.read_json(CONFIG)
    if stored is None:
        raise BadDataError(f"{folder.uri} holds no run: check --checkpoint.")
    assert isinstance(stored, dict)
    return stored
