"""What a run results in: the predictions, the tracker's run, and the report."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from inat_job import events
from inat_job.checkpoints.manifest import Manifest
from inat_job.data import layout
from inat_job.data.cache_index import HIDDEN_FROM_TRIALS, CacheIndex
from inat_job.data.module import ImageDataModule
from inat_job.errors import JobError, Preempted
from inat_job.evaluation.image_sheets import EvaluationImages
from inat_job.evaluation.metrics import accuracy_metrics, majority_baseline, split_metrics
from inat_job.evaluation.pictures import Picture, PictureInputs, draw
from inat_job.evaluation.plots import CurveMarks
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.evaluation.predictions import EvaluationProgress, predict
from inat_job.host import environment, process
from inat_job.models.classifier import Classifier
from inat_job.models.flops import network_size
from inat_job.models.strategies import Architecture, apply_strategy, trainable_stages
from inat_job.options import public_uri
from inat_job.reporting import report
from inat_job.reporting.loggers import TENSORBOARD_FOLDER, BackgroundLogger, LoggedRun, open_loggers
from inat_job.reporting.tracking import Tracker, open_tracker
from inat_job.run import timing
from inat_job.storage.run_folder import RunFolder
from inat_job.training.context import RunContext
from inat_job.training.execution import float32_math
from inat_job.training.trainer import make_trainer


@dataclass(frozen=True)
class Weights:
    """Where the tested weights are from.

    `checkpoint` is the report's section, `history` the attempts at the run, `reuse` the features that it trained on.
    """

    checkpoint: Mapping[str, Any]
    train_s: float = 0.0
    images_per_s: float | None = None
    history: Sequence[Mapping[str, Any]] = ()
    reuse: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run's splits, and the temperature that calibrates them."""

    table: PredictionTable
    temperature: float
    tta: PredictionTable | None = None
    """Of the test split, with each image also mirrored."""


def checkpoint_weights(
    context: RunContext,
    checkpoint: Manifest,
    history: Sequence[Mapping[str, Any]],
    reuse: Mapping[str, Any] | None = None,
) -> Weights:
    """The weights of a checkpoint of the run."""
    newest = context.checkpoints.newest()
    section = {
        "uri": f"{context.checkpoints.folder.uri}/{checkpoint.name}",
        "sha256": checkpoint.sha256,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
    }
    return Weights(section, newest.train_s, newest.images_per_s, history, reuse)


def predict_splits(
    context: RunContext, classifier: Classifier, validation: bool = True, test: bool = True
) -> PredictionTable:
    """The predictions of the splits that are asked for, on every rank: of validation only if the run has any.

    A trial of a sweep has no test: LookupError.
    """
    images, tables = context.images, []
    if validation and len(images.val_rows):
        tables.append(predict_split(context, classifier, layout.VALIDATION, images.val_rows, "final-validation"))
    if test:
        if context.trial:
            raise LookupError(HIDDEN_FROM_TRIALS)
        tables.append(predict_split(context, classifier, layout.TEST, images.test_rows, "test"))
    return PredictionTable.joined(tables)


def predict_mirrored(context: RunContext, classifier: Classifier, table: PredictionTable) -> PredictionTable:
    """The test split of `table`, each probability the mean of its own and that of the mirrored image."""
    plain = table.split(layout.TEST)
    mirror = predict_split(context, classifier, layout.TEST, plain.rows, "test-mirrored", mirror=True)
    return replace(plain, probabilities=(plain.probabilities + mirror.probabilities) / 2)


def predict_split(
    context: RunContext, classifier: Classifier, split: str, rows: np.ndarray, phase: str, mirror: bool = False
) -> PredictionTable:
    """The predictions of a split or its mirrored images, given its rows of the cache. Each rank evaluates its share."""
    events.phase(phase)
    group = context.group
    progress = EvaluationProgress(context.stop, phase, group.any_rank_delayed)
    execution = context.execution.of_evaluation()
    trainer = make_trainer(execution, context.settings.train, [progress], group)
    with context.clock.phase("test_s"), group.lost_rank_errors(), float32_math(execution.tf32):
        part = predict(trainer, classifier, context.images.batches(rows, mirror))
        group.drop_pending()
        logits = group.all_gather_rows(part, len(rows))
    return PredictionTable.from_logits(context.images.cache.index, split, rows, logits.numpy())


@contextmanager
def tracked(
    context: RunContext, identity: str | None = None, rows: Sequence[Mapping[str, float]] | None = None
) -> Iterator[Tracker]:
    """The tracker of a run; off on all ranks but rank 0.

    `identity` is that of the run in config.json, `rows` has the metrics until the checkpoint that the run resumes from.

    When the block fails, the tracker ends with the job's exit code; on success, `publish` ends it with the report.
    """
    settings, folder = context.settings, context.folder
    environment.disable_wandb_error_reporting()
    tracker = open_tracker(
        environment.wandb_mode(settings.tracker.mode) if context.group.is_main else "off",  # type: ignore[arg-type]
        run_id=context.tracked_as or folder.run_id,
        settings=settings.tracker,
        folder=folder.attempt_folder,
        kept_in=folder.local,
        config=settings.as_dict(),
        has_key=environment.has_wandb_key(),
        resumed=rows is not None,
    )
    if context.group.is_main and settings.tracker.loggers:
        tracker.loggers = _open_loggers(context, identity, rows or ())
    try:
        yield tracker
    except Preempted:
        tracker.preempting()
        _finish(tracker, folder, Preempted.exit_code)
        raise
    except BaseException as error:
        _finish(tracker, folder, error.exit_code if isinstance(error, JobError) else 1)
        raise


def _open_loggers(
    context: RunContext, identity: str | None, rows: Sequence[Mapping[str, float]]
) -> list[BackgroundLogger]:
    settings, folder = context.settings, context.folder
    folder.discard(TENSORBOARD_FOLDER)  # of an earlier attempt: this one writes it again
    name = context.tracked_as or folder.run_id
    written = folder.attempt_folder / TENSORBOARD_FOLDER
    run = LoggedRun(name, settings.tracker.project, identity, written, settings.as_dict(), rows)
    return open_loggers(settings.tracker.loggers, run)


def _finish(tracker: Tracker, folder: RunFolder, exit_code: int) -> None:
    tracker.finish(exit_code)
    if not folder.remote:  # or else the next attempt does so: a store may keep this one waiting
        folder.join_attempt()


def make_report(
    context: RunContext,
    architecture: Architecture,
    weights: Weights,
    predictions: Predictions,
    tracker: Tracker,
    command: str,
    started: str | None = None,
) -> dict[str, Any]:
    """The content of report.json; `command` is train or test.

    `started` is when the run was first begun, or this process by default.
    """
    settings = context.settings
    epochs = context.train.epochs
    apply_strategy(architecture, trainable_stages(architecture, epochs - 1, epochs))  # as training ends
    return report.build(
        command=command,
        part=settings.part,
        run_id=context.folder.run_id,
        started=started or context.clock.started_at(),
        finished=timing.utc_now(),
        **_metrics_sections(predictions, context.images),
        model={"name": architecture.name, **network_size(architecture.network, settings.data.eval_size).as_dict()},
        data=_data_section(context.images),
        settings=settings.as_dict(),
        timing=context.clock.timing(weights.train_s),
        throughput={"train_images_per_s": weights.images_per_s},
        reuse=weights.reuse,
        cost=report.cost(context.group.size, context.clock.wall_s(), settings.run.price_per_hour),
        checkpoint=weights.checkpoint,
        history=list(weights.history),
        tracker={"mode": tracker.mode, "run_id": tracker.run_id, "url": tracker.url},
        environment=report.environment(context.execution.device, context.execution.as_dict()),
    )


def draw_pictures(
    context: RunContext,
    network: nn.Module,
    predictions: Predictions,
    rows: Sequence[Mapping[str, Any]] = (),
    best_step: int | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> list[Picture]:
    """The pictures of the run, in plots/ of its folder. None with `--no-pictures`.

    `rows` are those of metrics.jsonl, `history` has the attempts at the run, and `best_step` is that of its best epoch.
    Rank 0 alone draws them; the others wait for the end of the run, for which they have no time-out.
    """
    settings, images = context.settings, context.images
    if not settings.run.pictures:
        return []
    events.phase("pictures")
    smoothing = settings.train.label_smoothing
    training = ["augmented images"] * settings.train.augment + ["mixed images"] * settings.train.mixes
    training += [f"labels smoothed by {smoothing:g}"] * (smoothing > 0)
    attempts = tuple(each["started_step"] for each in history[1:])
    inputs = PictureInputs(
        network,
        evaluation_images(context),
        {layout.TEST: images.test_rows, layout.VALIDATION: images.val_rows, layout.TRAIN: images.train_rows},
        predictions.table,
        settings.train.seed,
        predictions.temperature,
        rows,
        CurveMarks(best_step, attempts, ", ".join(training)),
    )
    with context.clock.phase("pictures_s"), context.folder.drafts("plots") as drafts:
        found = draw(inputs, drafts, context.stop)
    return [replace(each, path=context.folder.path(f"plots/{each.path.name}")) for each in found]


def evaluation_images(context: RunContext) -> EvaluationImages:
    """The images of the run as its network sees them."""
    data = context.settings.data
    return EvaluationImages(context.images.cache, data.eval_size, data.eval_crop)


def suggestion(context: RunContext) -> str:
    """What a person can paste to go on: the command that tests the run again.

    `--data` is needed where its address has secrets, which config.json does not hold.
    """
    uri = context.settings.data.uri
    data = ["--data", "URI"] if public_uri(uri) != uri else []
    return shlex.join([*process.command_prefix(), "test", "--checkpoint", context.folder.uri, *data])


def _metrics_sections(predictions: Predictions, images: ImageDataModule) -> dict[str, Any]:
    """The sections that are made of predictions."""
    temperature, index = predictions.temperature, images.cache.index
    val, test = predictions.table.split(layout.VALIDATION), predictions.table.split(layout.TEST)
    labels, tta = np.array(index.labels), predictions.tta
    validated = {"temperature": temperature, "val": split_metrics(val, temperature) if len(val) else None}
    if not len(test):
        return {**validated, "test": None, "baseline": None}
    return {
        **validated,
        "test": {**split_metrics(test, temperature), "not_in_train": _not_in_train(test, index)},
        **({"test_tta": {"tta": "flip", **split_metrics(tta, temperature)}} if tta else {}),
        "baseline": majority_baseline(labels[images.train_rows], test),
    }


def _not_in_train(test: PredictionTable, index: CacheIndex) -> dict[str, Any] | None:
    """The accuracy on the test images whose file is not also a training image; None if there are none."""
    copies = set(index.in_both_splits())
    others = test.take(np.array([at for at, name in enumerate(test.ids) if name not in copies], dtype=np.int64))
    return accuracy_metrics(others) if len(others) else None


def _data_section(images: ImageDataModule) -> Mapping[str, Any]:
    index, weights = images.cache.index, images.class_weights
    return {
        "uri": index.source,
        "digest": index.digest,
        "split_digest": images.split_digest,
        "test_share": index.test_share,
        "val_share": images.val_share if len(images.val_rows) else None,
        "n_train": len(images.train_rows),
        "n_val": len(images.val_rows),
        "n_test": len(images.test_rows),
        "n_train_dropped_per_epoch": images.dropped_per_epoch,
        "n_train_per_class": images.train_counts.tolist(),
        "class_weights": None if weights is None else [round(weight, 6) for weight in weights.tolist()],
        "in_both_train_and_test": len(index.in_both_splits()),
        "classes": list(index.classes),
        "rejected": list(index.rejected),
        "skipped": list(index.skipped),
        "blank": list(index.blank),
    }
