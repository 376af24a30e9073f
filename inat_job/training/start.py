"""How a run starts or resumes: what rank 0 finds or decides, brought to every rank.

All ranks call each function here at the same point of training/run.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inat_job import events
from inat_job.checkpoints import manifest
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest
from inat_job.data.cache_index import Cache, load_trusted
from inat_job.distributed.process_group import ProcessGroup
from inat_job.errors import BadDataError, ConflictError
from inat_job.job_status import STATUS
from inat_job.models.classifier import Classifier
from inat_job.models.flops import meta_copy
from inat_job.models.strategies import Architecture, apply_strategy, trainable_stages
from inat_job.run.run_state import CONFIG, open_run, read_config
from inat_job.run.sweep_folder import refuse_sweep
from inat_job.training import feature_cache
from inat_job.training.context import RunContext, check_classes, load_weights, warn_of_other_test_set


class Checkpoint(NamedTuple):
    """A checkpoint's manifest, and its file on this machine."""

    manifest: Manifest
    path: Path


def shared_cache(group: ProcessGroup, cache: Cache | None) -> Cache:
    """The images that each machine's first rank has prepared, for all ranks of the machine."""
    folder, source = group.broadcast_on_node([str(cache.folder), cache.index.source] if cache else None)
    if cache:
        return cache
    shared = load_trusted(Path(folder))
    if shared is None:
        raise BadDataError(f"{folder}, prepared by another rank, cannot be read: run the same command again.")
    return replace(shared, index=replace(shared.index, source=source))


def init_collectives(context: RunContext) -> None:
    accelerator = context.execution.accelerator
    if context.group.size > 1 and context.settings.train.sync_batch_norm and accelerator == "cpu":
        raise ConflictError("--sync-batch-norm needs GPUs, since torch has none for a CPU: leave it out.")
    context.group.init_collectives(cuda=accelerator == "cuda")


def check_batch_norm(context: RunContext, architecture: Architecture) -> None:
    """Raise ConflictError if batch norm has a single value a channel: of one image, where maps are a pixel large."""
    train, data, ranks = context.settings.train, context.settings.data, context.group.size
    if context.images.slice_size > ranks or (train.sync_batch_norm and ranks > 1):
        return
    copied = replace(architecture, network=meta_copy(architecture.network))
    apply_strategy(copied, trainable_stages(copied, epoch=1, epochs=1))  # the most that train in an epoch
    size = train.start_size or data.image_size
    try:
        with torch.no_grad():
            copied.network(torch.zeros(1, 3, size, size, dtype=torch.uint8, device="meta"))
    except ValueError:
        raise ConflictError(
            f"A device trains on one image at a time, and at {size} px batch norm then has a single value, of which "
            f"there is no deviation: lower --accumulate, which is {train.accumulate}, or raise --batch-size, which is "
            f"{train.batch_size}, or the size."
        ) from None


def shared_checkpoint(group: ProcessGroup, find: Callable[[], tuple[Manifest, Path] | None]) -> Checkpoint | None:
    """The checkpoint that rank 0 finds, on every rank."""
    found, path = (find() if group.is_main else None) or (None, None)
    text = group.broadcast(manifest.to_json(found) if found else None)
    return None if text is None else Checkpoint(manifest.parse(text), group.broadcast_file(path))


def find_checkpoint(context: RunContext) -> Checkpoint | None:
    """The newest intact checkpoint, to resume from; the job's status names the newest stored one."""
    checkpoints = context.checkpoints
    resumed = shared_checkpoint(context.group, lambda: checkpoints.discover(spooled=True).load_newest_intact())
    if stored := checkpoints.stored:
        STATUS.stored_step, STATUS.checkpoint = stored[-1].step, f"{context.folder.uri}/{stored[-1].name}"
    return resumed


def check_same_data(context: RunContext, resumed: Manifest) -> None:
    """Raise ConflictError unless the checkpoint was trained on these very images, split this way."""
    images = context.images
    if (resumed.data_digest, resumed.split_digest) != (images.cache.index.digest, images.split_digest):
        raise ConflictError(
            f"The data set at {images.cache.index.source} is not the one that {context.folder.uri} was trained on: "
            "bring the old one back, or change --run-id."
        )


def init_from(context: RunContext, classifier: Classifier) -> None:
    """With `--init-from`, start from the best weights of another run (a run id under `--output`, or a URI)."""
    if context.settings.run.init_from:
        load_best(context, classifier, partial(_best_of, context, context.settings.run.init_from))


def load_best(context: RunContext, classifier: Classifier, find: Callable[[], tuple[Manifest, Path]]) -> Manifest:
    """Load the weights of the checkpoint that rank 0 finds, and return its manifest."""
    best = shared_checkpoint(context.group, find)
    assert best
    load_weights(classifier, best.path)
    return best.manifest


def _best_of(context: RunContext, name: str) -> tuple[Manifest, Path]:
    folder, index = open_run(context.settings, name, context.stop), context.images.cache.index
    config = read_config(folder)
    if config is None:
        refuse_sweep(folder.store)
        config = {}
    check_classes(folder, config, index.classes)
    warn_of_other_test_set(context, folder, config)
    best, path = CheckpointIndex(folder, context.stop).discover().best()
    other_split = best.data_digest == index.digest and best.split_digest != context.images.split_digest
    if other_split and not context.settings.train.final:
        events.warn(
            f"{folder.uri} was trained on images that this run validates with, so its validation accuracy is too high: "
            f"{_same_split(config)}."
        )
    return best, path


def _same_split(config: Mapping[str, Any]) -> str:
    """How to validate with the images that the run of a config.json held out."""
    settings = config.get("settings")
    train = settings.get("train") if isinstance(settings, Mapping) else None
    if isinstance(train, Mapping) and train.get("final"):
        return "train with --final too, or start from a run without it"
    return "use the --seed and --val-share of that run"


def decide_once(
    context: RunContext, architecture: Architecture, classifier: Classifier, config: dict[str, Any]
) -> dict[str, Any]:
    """What is decided once, as a run first starts: from here on it can be resumed. Returns the new config.json."""
    train, trained, images = context.settings.train, context.train, context.images
    if trained.epochs > train.epochs:
        per_epoch, least = images.images_per_epoch, train.min_images_seen
        events.emit("length", epochs=trained.epochs, of=train.epochs, images=per_epoch, least=least)
    plan = feature_cache.decide(context, architecture, classifier) if context.group.is_main else None
    config = config | {
        "execution": context.execution.as_dict(),
        "epochs": trained.epochs,
        "classes": list(images.cache.index.classes),
        "lacking": list(architecture.lacking),
        "reuse": context.group.broadcast(plan.as_dict() if plan else None),
    }
    if context.group.is_main:
        context.folder.write_json(CONFIG, config)
        context.folder.publish(CONFIG)
    return config
