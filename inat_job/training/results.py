"""What a run results in: the metrics of a split, the tracker's run, and the report."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from inat_job import events
from inat_job.checkpoints.manifest import Manifest
from inat_job.data.module import ImageDataModule
from inat_job.errors import JobError, Preempted
from inat_job.evaluation.metrics import split_metrics
from inat_job.evaluation.predictions import EvaluationProgress, predict
from inat_job.host import environment, process
from inat_job.models.classifier import Classifier
from inat_job.models.flops import network_size
from inat_job.models.strategies import Architecture, apply_strategy, trainable_stages
from inat_job.reporting import report
from inat_job.reporting.tracking import Tracker, open_tracker
from inat_job.settings import public_uri
from inat_job.storage.run_folder import RunFolder
from inat_job.training.context import RunContext
from inat_job.training.trainer import make_trainer


def evaluate_splits(context: RunContext, classifier: Classifier, validation: bool = True) -> dict[str, Any]:
    """The report's sections `val`, which is None without `validation`, and `test`."""
    images = context.images
    return {
        "val": _evaluate(context, classifier, images.val_rows, "final-validation") if validation else None,
        "test": _evaluate(context, classifier, images.test_rows, "test"),
    }


def _evaluate(context: RunContext, classifier: Classifier, rows: np.ndarray, phase: str) -> dict[str, Any]:
    """The report's section for a split, given its rows of the cache. Each rank evaluates its share."""
    events.phase(phase)
    group = context.group
    progress = EvaluationProgress(context.stop, phase, group.any_rank_delayed)
    trainer = make_trainer(context.execution, context.settings.train, [progress], group)
    with context.clock.phase("test_s"), group.lost_rank_errors():
        parts = predict(trainer, classifier, context.images.batches(rows))
        group.drop_pending()
        logits, labels = (group.all_gather_rows(part, len(rows)) for part in parts)
    return split_metrics(logits, labels, context.images.cache.index.classes)


@contextmanager
def tracked(context: RunContext) -> Iterator[Tracker]:
    """The tracker of a run; off on all ranks but rank 0.

    When the block fails, the tracker ends with the job's exit code; on success, `publish` ends it with the report.
    """
    settings, folder = context.settings, context.folder
    environment.disable_wandb_error_reporting()
    tracker = open_tracker(
        environment.wandb_mode(settings.tracker.mode) if context.group.is_main else "off",  # type: ignore[arg-type]
        run_id=folder.run_id,
        project=settings.tracker.project,
        entity=settings.tracker.entity,
        folder=folder.attempt_folder,
        kept_in=folder.local,
        config=settings.as_dict(),
        has_key=environment.has_wandb_key(),
    )
    try:
        yield tracker
    except Preempted:
        tracker.preempting()
        _finish(tracker, folder, Preempted.exit_code)
        raise
    except BaseException as error:
        _finish(tracker, folder, error.exit_code if isinstance(error, JobError) else 1)
        raise


def _finish(tracker: Tracker, folder: RunFolder, exit_code: int) -> None:
    tracker.finish(exit_code)
    if not folder.remote:  # or else the next attempt does so: a store may keep this one waiting
        folder.join_attempt()


def make_report(
    context: RunContext,
    architecture: Architecture,
    checkpoint: Manifest,
    tracker: Tracker,
    splits: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    reuse: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of report.json.

    `splits` has the sections of `evaluate_splits`, `history` the attempts at the run, `reuse` the features that it
    trained on.
    """
    settings, newest = context.settings, context.checkpoints.newest()
    epochs = settings.train.epochs
    apply_strategy(architecture, trainable_stages(architecture, epochs - 1, epochs))  # as training ends
    return report.build(
        part=settings.part,
        run_id=context.folder.run_id,
        **splits,
        model={"name": architecture.name, **network_size(architecture.network, settings.data.image_size).as_dict()},
        data=_data_section(context.images),
        settings=settings.as_dict(),
        timing=context.clock.timing(newest.train_s),
        throughput={"train_images_per_s": newest.images_per_s},
        reuse=reuse,
        cost=report.cost(context.group.size, context.clock.wall_s(), settings.run.price_per_hour),
        checkpoint={
            "uri": f"{context.checkpoints.folder.uri}/{checkpoint.name}",
            "sha256": checkpoint.sha256,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
        },
        history=list(history),
        tracker={"mode": tracker.mode, "run_id": tracker.run_id, "url": tracker.url},
        environment=report.environment(context.execution.device, context.execution.as_dict()),
    )


def suggestion(context: RunContext) -> str:
    """What a person can paste to go on: the command that tests the run again.

    `--data` is needed where its address has secrets, which config.json does not hold.
    """
    uri = context.settings.data.uri
    data = ["--data", "URI"] if public_uri(uri) != uri else []
    return shlex.join([*process.command_prefix(), "test", "--checkpoint", context.folder.uri, *data])


def _data_section(images: ImageDataModule) -> Mapping[str, Any]:
    index = images.cache.index
    return {
        "uri": index.source,
        "digest": index.digest,
        "split_digest": images.split_digest,
        "n_train": len(images.train_rows),
        "n_val": len(images.val_rows),
        "n_test": len(images.test_rows),
        "n_train_dropped_per_epoch": images.dropped_per_epoch,
        "in_both_train_and_test": len(index.in_both_splits()),
        "classes": list(index.classes),
        "rejected": list(index.rejected),
        "skipped": list(index.skipped),
        "blank": list(index.blank),
    }
