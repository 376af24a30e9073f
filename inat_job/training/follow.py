"""What every rank but the first does of a run, in the order of jobs/train.py, writing nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inat_job.checkpoints import manifest
from inat_job.checkpoints.manifest import Manifest
from inat_job.checkpoints.uploader import NullUploader
from inat_job.data.cache_index import Cache, load_trusted
from inat_job.distributed import ranks
from inat_job.distributed.ranks import Rank
from inat_job.distributed.rendezvous import join
from inat_job.errors import BadDataError
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder
from inat_job.training import compiling, context
from inat_job.training import run as train
from inat_job.training.context import RunContext
from inat_job.training.execution import Execution
from inat_job.training.metrics_log import MetricsLog


def run(
    rank: Rank,
    settings: Settings,
    folder: RunFolder,
    cache: Cache | None,
    clock: Clock,
    stop: StopFlag,
    over: Callable[[], bool],
) -> None:
    """Do a rank's share of the run in `folder`, on a `cache` that it has prepared, or else another of its machine.

    Ends when rank 0 has finished the run, or `over` says that it had before.
    """
    group = join(rank, stop, over)
    if group is None:
        return
    words = ranks.words()  # in a folder of the supervisor's, which is deleted though a rank be killed
    with (
        group.cause.telling(),
        TemporaryDirectory(prefix="inat-job-", dir=words.parent if words else None) as copies,
    ):
        where, source = group.broadcast_on_node([str(cache.folder), cache.index.source] if cache else None)
        cache = cache or _prepared(Path(where), source)
        told = group.broadcast()
        work = context.begin(settings, folder, cache, told["execution"], clock, stop, group)
        _work(work, manifest.parse(told["resumed"]) if told["resumed"] else None, Path(copies))
        group.finish()


def _work(work: RunContext, resumed: Manifest | None, copies: Path) -> None:
    group, settings = work.group, work.settings
    train.connect(work)
    latest = (resumed, group.broadcast_file(None, copies)) if resumed else None
    architecture, classifier = context.network(work, pretrained=latest is None and not settings.run.init_from)
    context.reside(work)
    if latest is None and settings.run.init_from:
        context.load_weights(classifier, group.broadcast_file(None, copies))
    decided: dict[str, Any] = group.broadcast()
    work = replace(work, execution=Execution(**decided["execution"]))
    if work.execution.compile:
        compiling.compile_in_place(architecture.network, work.execution.compile_mode)
    train.features(work, classifier, decided.get("reuse"), latest)
    train.train(work, classifier, NullUploader(), MetricsLog(None, _nothing, work.images.slice_size, group), latest)
    context.load_weights(classifier, group.broadcast_file(None, copies))
    train.evaluate(work, classifier)


def _prepared(folder: Path, source: str) -> Cache:
    cache = load_trusted(folder)
    if cache is None:
        raise BadDataError(f"{folder} was prepared by another rank and cannot be read: run the same command again.")
    return replace(cache, index=replace(cache.index, source=source))


def _nothing(values: dict[str, float], step: int) -> None:
    """Rank 0 tells the tracker."""
