"""The training story: what is left of a run, from prepared images to the published report, in the order of events.

Every rank executes this module from top to bottom and makes the same collective calls. Only rank 0 holds the run's
lease and writes: the others get an uploader and a tracker that do nothing. Before this, commands/train.py takes the
lease and prepares the images while torch is imported.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from inat_job import events
from inat_job.checkpoints.manifest import Manifest
from inat_job.checkpoints.uploader import NullUploader, Uploader, uploading
from inat_job.data.cache_index import Cache
from inat_job.data.layout import VALIDATION
from inat_job.distributed import rendezvous
from inat_job.evaluation.calibration import fit_temperature
from inat_job.evaluation.pictures import Picture
from inat_job.evaluation.predictions import EvaluationProgress
from inat_job.host.device_faults import device_errors
from inat_job.job_status import STATUS
from inat_job.models.classifier import Classifier
from inat_job.models.export import export
from inat_job.models.strategies import Architecture
from inat_job.reporting.publish import publish, publish_trial, store_checkpoints
from inat_job.run import resources
from inat_job.run.job import Job
from inat_job.run.run_state import CONFIG, LeasedRun
from inat_job.training import execution, feature_cache, linear_probe, start
from inat_job.training.checkpoint_callback import CheckpointCallback
from inat_job.training.context import RunContext, load_weights
from inat_job.training.feature_cache import FeaturePlan
from inat_job.training.finish_model import export_formats, finish_model
from inat_job.training.introduction import introduce, warn_of_unused_augmentation
from inat_job.training.metrics_log import NAME as METRICS
from inat_job.training.metrics_log import MetricsFile, MetricsLog, probe_row
from inat_job.training.results import (
    Predictions,
    checkpoint_weights,
    draw_pictures,
    evaluation_images,
    make_report,
    predict_splits,
    suggestion,
    tracked,
)
from inat_job.training.start import Checkpoint
from inat_job.training.trainer import fit_errors, make_trainer


def run(job: Job, leased: LeasedRun | None, cache: Cache | None) -> None:
    """Join the other ranks and do what is left of the run.

    `leased` is the run with its lease, on rank 0 alone; `cache` has the images, on the first rank of each machine. A
    rank that starts after the run was finished has nothing to do.
    """
    group = rendezvous.join(job.rank, job.stop, job.is_finished, 60 * job.settings.train.rendezvous_minutes)
    if group is None:
        return
    with group, device_errors():
        config = group.broadcast(leased.config if leased else None)
        context = RunContext.create(job, start.shared_cache(group, cache), config["execution"], group)
        start.init_collectives(context)
        train_and_test(context, leased, config)


def train_and_test(context: RunContext, leased: LeasedRun | None, config: dict[str, Any]) -> None:
    """The run itself: model, resume, features, training, best weights, evaluation, export, report."""
    group = context.group

    # Model, and the state to resume from.
    resumed = start.find_checkpoint(context)
    architecture, classifier, config = _network(context, resumed, config)

    context.clock.add_earlier(resumed.manifest.train_s if resumed else 0.0)
    metrics = MetricsFile(context.folder, resumed.manifest if resumed else None) if group.is_main else None
    tracking = tracked(context, config.get("id"), metrics.rows if metrics and resumed else None)
    uploads = _checkpoint_uploads(context, leased, resumed)
    with tracking as tracker, uploads as uploader, device_errors():
        # Training.
        reuse = _features(context, classifier, config.get("reuse"), resumed)
        log = MetricsLog(metrics, tracker.log, context.images.slice_size, group)
        probed = not resumed and linear_probe.set_head(context, architecture, classifier)
        group.barrier()  # weights and features may be ready on one machine, and minutes away on another
        _train(context, classifier, uploader, log, resumed, probed)
        context.clock.mark_first_step(log.first_step_at)

        # Results, with the weights of the best epoch.
        best = start.load_best(context, classifier, context.checkpoints.best)
        table = predict_splits(context, classifier, test=context.trial is None)
        predictions = Predictions(table, fit_temperature(table.split(VALIDATION)))
        pictures = _describe(context, leased, architecture, predictions, metrics.rows if metrics else (), best)
        store_checkpoints(context.folder, uploader, context.stop)
        if leased:
            history = leased.lease.history(context.checkpoints.newest().ended)
            weights = checkpoint_weights(context, best, history, reuse)
            exports = {} if context.trial else export_formats(context)
            report = make_report(context, architecture, weights, predictions, tracker, "train", config.get("started"))
            if context.trial:
                publish_trial(context.folder, tracker, report)
            else:
                report |= {"exports": exports} if exports else {}
                report |= {"probe": found} if (found := probe_row(metrics.rows if metrics else ())) else {}
                finish_model(context, report)
                images = evaluation_images(context) if pictures else None
                publish(context.folder, tracker, report, table, pictures, suggestion(context), images)


def _network(
    context: RunContext, resumed: Checkpoint | None, config: dict[str, Any]
) -> tuple[Architecture, Classifier, dict[str, Any]]:
    """The network as this attempt trains it, and config.json with what is decided as a run first starts."""
    settings = context.settings
    pretrained = not resumed and not settings.run.init_from
    architecture, classifier = context.build_network(pretrained, config.get("lacking", ()))
    if context.group.is_main:
        resources.check_training(architecture, settings.train, context.folder.path(CONFIG).parent)
        start.check_batch_norm(context, architecture)
        warn_of_unused_augmentation(settings)
    context.move_images_to_gpu()
    if resumed:
        start.check_same_data(context, resumed.manifest)
    else:
        start.init_from(context, classifier)
        config = start.decide_once(context, architecture, classifier, config)
    introduce(context, architecture, resumed.manifest if resumed else None)
    if context.execution.compile:
        execution.compile_in_place(architecture.network, context.execution.compile_mode)
    return architecture, classifier, config


@contextmanager
def _checkpoint_uploads(
    context: RunContext, leased: LeasedRun | None, resumed: Checkpoint | None
) -> Iterator[Uploader | NullUploader]:
    """Uploads of checkpoints in the background, on rank 0; what is pending is stored before the block is left."""
    if leased is None:
        yield NullUploader()
        return
    manifest, grace_s = resumed.manifest if resumed else None, context.settings.run.grace_seconds
    leased.lease.started(manifest.step if manifest else 0)
    with uploading(context.checkpoints, leased.lease, [METRICS], context.stop, grace_s, manifest) as uploader:
        yield uploader


def _features(
    context: RunContext, classifier: Classifier, plan: dict[str, Any] | None, resumed: Checkpoint | None
) -> dict[str, Any] | None:
    """Prepare the cached features that epochs still to come train on; returns the report's section."""
    if plan is None:
        return None
    epochs_done = resumed.manifest.epoch - resumed.manifest.awaits_validation if resumed else 0
    if epochs_done >= plan["epochs"] or (resumed and resumed.manifest.ended):
        return plan
    if resumed:
        load_weights(classifier, resumed.path)  # the stem's weights are those of the start
    return feature_cache.prepare(context, classifier, FeaturePlan(**plan))


def _train(
    context: RunContext,
    classifier: Classifier,
    uploader: Uploader | NullUploader,
    log: MetricsLog,
    resumed: Checkpoint | None,
    probed: bool,
) -> None:
    """Train what is left: the training loop, after the validation of a probe, or one that the last attempt owes."""
    callback = CheckpointCallback(context, uploader, log, resumed.manifest if resumed else None)
    if resumed:
        cuts = tuple((step, end) for step, end in resumed.manifest.cuts)
        classifier.schedule = replace(classifier.schedule, cuts=cuts)
    context.images.end_with(lambda step: classifier.schedule.end_at(step))  # noqa: PLW0108, its end may move
    STATUS.epochs = math.ceil(classifier.schedule.end / context.images.steps_per_epoch)
    if probed and not context.settings.train.final:
        with context.group.lost_rank_errors():
            _validate(context, classifier)
            log.validated(classifier, step=0, epoch=-1)
    elif resumed and resumed.manifest.awaits_validation:
        load_weights(classifier, resumed.path)
        context.images.train_batches.go_to(resumed.manifest.epoch - 1, len(context.images.train_batches))
        with context.group.lost_rank_errors():
            _validate(context, classifier)
            log.validated(classifier, resumed.manifest.step, resumed.manifest.epoch - 1)
            callback.add_validation(classifier)
    elif resumed:
        callback.report_to_sweep()
    if not callback.ended:
        trainer = make_trainer(context.execution, context.train, [log, callback], context.group)
        path = resumed.path if resumed else None
        with fit_errors(trainer, path, context.group):
            trainer.fit(classifier, datamodule=context.images, ckpt_path=path, weights_only=True)
    uploader.wait_until_written()


def _validate(context: RunContext, classifier: Classifier) -> None:
    events.phase("validate")
    progress = EvaluationProgress(context.stop, "validate", context.group.any_rank_delayed)
    trainer = make_trainer(context.execution, context.settings.train, [progress], context.group)
    trainer.validate(classifier, datamodule=context.images, verbose=False)
    context.group.drop_pending()


def _describe(
    context: RunContext,
    leased: LeasedRun | None,
    architecture: Architecture,
    predictions: Predictions,
    rows: Sequence[Mapping[str, Any]],
    best: Manifest,
) -> list[Picture]:
    """Export the model, and draw the pictures of the run: rank 0 does, and a trial of a sweep has neither."""
    if leased is None or context.trial:
        return []
    with context.folder.drafts("model") as drafts:
        export(architecture, drafts, _model_card(context, predictions.temperature))
    attempts = leased.lease.history("finished")
    return draw_pictures(context, architecture.network, predictions, rows, best.step, attempts)


def _model_card(context: RunContext, temperature: float) -> dict[str, Any]:
    """What model.json holds besides the architecture."""
    data = context.settings.data
    return {
        "classes": list(context.images.cache.index.classes),
        "preprocessing": {"image_size": data.eval_size, "eval_crop": data.eval_crop},
        "temperature": temperature,
    }
