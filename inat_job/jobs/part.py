"""`parta` and `partb`: what is known before any work, at once and without torch; then the work, if there is any."""

import secrets
from typing import Any

from inat_job import events
from inat_job.jobs import collect, folders, machine, preflight, prepare, room
from inat_job.jobs.claim import CONFIG, Claim, claim, clear, config_of
from inat_job.jobs.clock import Clock
from inat_job.jobs.hold import Held, hold
from inat_job.jobs.meanwhile import Importing
from inat_job.platforms.place import PLAIN, Place
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder


def run(settings: Settings, stop: StopFlag, started: float, place: Place = PLAIN) -> None:
    """Do the whole job, or what is left of it; `started` is the time.perf_counter() of the process's start.

    In the end the results are put where the platform collects them, also those of a run that is found finished.
    """
    if settings.run.preflight:
        events.phase("preflight")
        preflight.run(settings, place, stop)
    collect.check(place)
    folder = folders.run_folder(settings, settings.run_id, stop)
    events.note(run=folder.uri)
    events.phase("start")
    _finish(settings, folder, stop, started)
    collect.collect(place, folder)


def _finish(settings: Settings, folder: RunFolder, stop: StopFlag, started: float) -> None:
    if _is_finished(folder, settings):  # or is refused, before another job of the run is waited for
        return
    with hold(folder, settings.run.lease_seconds, stop) as held:
        if _is_finished(folder, settings):
            return
        stored = _take_up(held, settings)
        room.check_memory()
        machine.check_device(settings.train.accelerator)  # torch would tell after the data set is pulled
        clock, importing = Clock(started), Importing(_train)
        cache = prepare.pictures(settings, clock, stop)
        importing.wait(stop).run(settings, held, stored, cache, clock, stop)


def _train() -> Any:
    from inat_job.jobs import train  # torch and Lightning take seconds to import

    return train


def _is_finished(folder: RunFolder, settings: Settings) -> bool:
    finished = claim(folder, settings)[0] is Claim.FINISHED
    if finished:
        events.emit("done", message="Already finished; there is nothing to do.", report=f"{folder.uri}/report.json")
    return finished


def _take_up(held: Held, settings: Settings) -> dict[str, Any]:
    """The config.json of the run, which is begun if there is none."""
    folder = held.folder
    if settings.run.force:
        clear(folder, keep=held.lease.key)
        held.lease.begins_anew()
    standing, stored = claim(folder, settings)
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
