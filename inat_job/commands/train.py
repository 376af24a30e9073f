"""`parta`, `partb` and `train`: what is known before any work, without torch; then the run, on one rank or several."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.commands import preflight
from inat_job.data.cache_index import Cache
from inat_job.distributed import launcher, ranks, world
from inat_job.distributed.ranks import Rank
from inat_job.errors import BadDataError, BadImagesError
from inat_job.ingest import data_source, inspect
from inat_job.job_status import STATUS
from inat_job.models import find_weights
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.reporting.tracker_check import check_tracking
from inat_job.run import outputs, resources
from inat_job.run.background_import import BackgroundImport
from inat_job.run.job import Job
from inat_job.run.prepare_images import arrangement, prepare_images
from inat_job.run.run_state import RunState, open_run, storage_options
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.telemetry import heartbeat


def run(settings: Settings, stop: StopFlag, started: float, platform: Platform = NO_PLATFORM) -> None:
    """Do the whole job, or what is left of it; `started` is the time.perf_counter() of the process's start.

    At the end, also of a run that is found finished, the results are copied to where the platform collects them.
    """
    STATUS.run_id = settings.run_id
    _check_names(settings)
    own = ranks.from_environment()
    _log_once_per_run(own)
    if own is None:
        check_tracking(settings.tracker, stop)
    if settings.run.preflight and own is None:
        events.phase("preflight")
        preflight.run(settings, platform, stop)
    if own is None or own.local_rank == 0:
        outputs.check_folders(platform)
    team = [own] if own else world.local_ranks(settings, platform)
    job = Job(settings, open_run(settings, settings.run_id, stop), team[0], Clock(started), stop)
    STATUS.run, STATUS.rank = job.folder.uri, job.rank.rank
    events.phase("start")
    if own is None:
        outputs.warn_of_loss(job.folder.uri)
    if own is None and job.rank.world_size > 1:
        if not job.is_finished():
            launcher.launch(team, settings.run.grace_seconds, stop)
            return  # its rank 0 has copied the results
    else:
        with heartbeat.emit_heartbeats():
            run_rank(job)
    if job.rank.rank == 0:
        outputs.collect_results(platform, job.folder)


def _check_names(settings: Settings) -> None:
    """Raise UsageError for a name or an address that cannot be right, before a run is begun or anything downloaded.

    ConflictError for a missing package.
    """
    data_source.parse_uri(settings.data.uri)
    find_weights.check_names(settings.model)
    resources.check_export(settings.run.export)
    if settings.run.init_from:
        open_run(settings, settings.run.init_from)


def _log_once_per_run(own: Rank | None) -> None:
    """Have a rank log only what no other process of the run logs."""
    if own and own.rank:
        events.only_warnings()
    elif ranks.message_file():
        STATUS.phase = "start"  # its launcher has logged that phase


def run_rank(job: Job) -> None:
    """Do a rank's part of what is left of the run. torch is imported while the images are downloaded and decoded."""
    world.check_batch_size(job.settings, job.rank.world_size)
    state = job.state()  # which may refuse the run, before another job of it is waited for
    if state is RunState.FINISHED:
        return
    if state is RunState.NEW:
        with _image_errors():
            _check_data(job)
    with job.lease() as leased:
        if leased and job.is_finished():  # by the job that was waited for
            return
        leased_run = job.take_up(leased) if leased else None
        resources.check_memory()
        resources.check_device(job.settings.train)  # torch would only say so after the download
        story = BackgroundImport(_training_story)
        cache = _images(job) if job.rank.local_rank == 0 else None
        story.wait(job.stop).run(job, leased_run, cache)


def _check_data(job: Job) -> None:
    """Refuse what is known to be wrong with the data without a download, before the run is begun."""
    events.phase("pull")
    data, options = job.settings.data, storage_options(job.settings.storage)
    found = arrangement(data, options, job.stop)
    summary = inspect.summarise(data.uri, Path(data.cache_dir), data.eval_size, options, job.stop, found)
    summary.check_batch_size(job.settings.train, data)


def _images(job: Job) -> Cache:
    with _image_errors():
        return prepare_images(job.settings, job.clock, job.stop, trains=True)


@contextmanager
def _image_errors() -> Iterator[None]:
    """Tell bad images from a bad checkpoint or weights: a sweep has them in common."""
    try:
        yield
    except BadDataError as error:
        raise BadImagesError(str(error)) from error


def _training_story() -> Any:
    from inat_job.training import run as story  # torch and Lightning take seconds to import

    return story
