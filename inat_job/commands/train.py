"""`parta` and `partb`: what is known before any work, at once and without torch; then the work, if there is any."""

import secrets
from typing import Any

from inat_job import events
from inat_job.commands import preflight
from inat_job.distributed import launcher, ranks, world
from inat_job.distributed.ranks import Rank
from inat_job.job_status import STATUS
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.run import folders, outputs, resources, run_state
from inat_job.run.background_import import BackgroundImport
from inat_job.run.prepare_images import prepare_images
from inat_job.run.run_state import CONFIG, HeldRun, RunState, check_run, clear, config_of, hold_run
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder
from inat_job.telemetry import heartbeat


def run(settings: Settings, stop: StopFlag, started: float, place: Platform = NO_PLATFORM) -> None:
    """Do the whole job, or what is left of it; `started` is the time.perf_counter() of the process's start.

    In the end the results are put where the platform collects them, also those of a run that is found finished.
    """
    STATUS.run_id = settings.run_id
    own = ranks.own()
    _introduce(own)
    if settings.run.preflight and own is None:
        events.phase("preflight")
        preflight.run(settings, place, stop)
    if own is None or own.local == 0:
        outputs.check(place)
    folder = folders.run_folder(settings, settings.run_id, stop)
    here = [own] if own else world.of(settings, place)
    STATUS.run, STATUS.rank = folder.uri, here[0].rank
    events.phase("start")
    several = own is None and here[0].size > 1
    over = several and _is_over(here[0], folder, settings)
    if several and not over:
        launcher.run(here, settings.run.grace_seconds, stop)
        return
    if not over:
        with heartbeat.beating():
            _work(here[0], settings, folder, stop, started)
    if here[0].rank == 0:
        outputs.collect(place, folder)


def _introduce(own: Rank | None) -> None:
    """Have a rank say only what no other says for it."""
    if own and own.rank:
        events.only_warnings()
    elif ranks.words():
        STATUS.phase = "start"  # its supervisor has said so


def _work(rank: Rank, settings: Settings, folder: RunFolder, stop: StopFlag, started: float) -> None:
    """Do a rank's part of the run, which may be found finished."""
    world.check(settings, rank.size)
    if rank.rank == 0:
        _lead(rank, settings, folder, stop, started)
    else:
        _follow(rank, settings, folder, stop, started)


def _lead(rank: Rank, settings: Settings, folder: RunFolder, stop: StopFlag, started: float) -> None:
    if _is_finished(folder, settings):  # or is refused, before another job of the run is waited for
        return
    with hold_run(folder, settings.run.lease_seconds, stop) as held:
        if _is_finished(folder, settings):
            return
        stored = _take_up(held, settings)
        resources.check_memory()
        resources.check_device(settings.train.accelerator)  # torch would tell after the data set is pulled
        clock, importing = Clock(started), BackgroundImport(_train)
        cache = prepare_images(settings, clock, stop)
        train = importing.wait(stop)
        train.run(settings, held, stored, cache, clock, stop, rank)


def _follow(rank: Rank, settings: Settings, folder: RunFolder, stop: StopFlag, started: float) -> None:
    """Work for rank 0, and write nothing; of a machine's ranks the first prepares the images for all."""
    if _is_over(rank, folder, settings):
        return
    clock, importing = Clock(started), BackgroundImport(_train)
    cache = prepare_images(settings, clock, stop) if rank.local == 0 else None
    importing.wait(stop)
    from inat_job.training import follow

    follow.run(rank, settings, folder, cache, clock, stop, lambda: _is_over(rank, folder, settings))


def _train() -> Any:
    from inat_job.training import run as train  # torch and Lightning take seconds to import

    return train


def _is_over(rank: Rank, folder: RunFolder, settings: Settings) -> bool:
    """Whether the run is finished. Rank 0, which begins runs, refuses what it may not go on with."""
    if rank.rank == 0:
        return _is_finished(folder, settings)
    return not settings.run.force and run_state.is_done(folder, settings)


def _is_finished(folder: RunFolder, settings: Settings) -> bool:
    finished = check_run(folder, settings)[0] is RunState.FINISHED
    if finished:
        report = f"{folder.uri}/report.json"
        events.emit("done", message=f"Already finished; there is nothing to do: see {report}.", report=report)
    return finished


def _take_up(held: HeldRun, settings: Settings) -> dict[str, Any]:
    """The config.json of the run, which is begun if there is none."""
    folder = held.folder
    if settings.run.force:
        clear(folder, keep=held.lease.key)
        held.lease.begins_anew()
    standing, stored = check_run(folder, settings)
    if stored is None:
        stored = _begin(folder, settings)
    elif not folder.has_local(CONFIG, stored, "id"):
        folder.forget()  # what lies here is of a run that was deleted since
        folder.write_json(CONFIG, stored)  # by which the next attempt here knows that what lies here is of this one
    events.emit("run", run=folder.uri, standing=standing.value)
    return stored


def _begin(folder: RunFolder, settings: Settings) -> dict[str, Any]:
    """Begin a run, which also shows whether its folder can be written to, before hours are spent on it."""
    folder.forget()
    config = config_of(settings, {}, command="train") | {"id": secrets.token_hex(8)}
    folder.write_json(CONFIG, config)
    folder.publish(CONFIG)
    return config
