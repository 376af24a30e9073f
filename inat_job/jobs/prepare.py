"""`prepare`: pull, verify and build the decoded cache, and nothing else; the other commands begin with it."""

from contextlib import ExitStack
from pathlib import Path

from inat_job import events
from inat_job.data import prepare, pull
from inat_job.data.index import Cache
from inat_job.jobs import prune
from inat_job.jobs.clock import Clock
from inat_job.jobs.folders import storage_options
from inat_job.jobs.requests import PrepareRequest
from inat_job.platforms import heartbeat
from inat_job.settings import Settings
from inat_job.signals import StopFlag


def run(settings: Settings, request: PrepareRequest, stop: StopFlag, started: float) -> None:
    """Leave a cache that the other commands find; or with --prune tell what lies there, and delete what is old."""
    if request.prune is not None:
        prune.run(Path(settings.data.cache_dir), request.unused_s, stop)
        return
    with heartbeat.beating():
        cache = pictures(settings, Clock(started), stop)
    events.emit(
        "done",
        message=f"Prepared {len(cache.index.ids)} pictures of {len(cache.index.classes)} classes.",
        folder=str(cache.folder),
        rejected=len(cache.index.rejected),
    )


def pictures(settings: Settings, clock: Clock, stop: StopFlag) -> Cache:
    """Pull and prepare, or find that nothing is left to do.

    A zip is decoded while it lands: pull_s is the time until all of it is here, prepare_s what comes after.
    """
    data, cache_dir = settings.data, Path(settings.data.cache_dir)
    with ExitStack() as timed:

        def whole() -> None:
            timed.close()
            events.phase("prepare")
            timed.enter_context(clock.phase("prepare_s"))

        events.phase("pull")
        timed.enter_context(clock.phase("pull_s"))
        source = pull.find(data.uri, cache_dir, storage_options(settings.storage), stop)
        cache = prepare.prepare(source, cache_dir, data.image_size, data.max_broken, stop, whole)
    index = cache.index
    events.emit("data", pictures=len(index.ids), classes=len(index.classes), digest=index.digest)
    for each in index.rejected:
        events.warn(f"{each['id']} is left out: {each['reason']}")
    if both := index.in_both_splits():
        events.warn(f"{len(both)} test pictures also stand in train, so the accuracy flatters", first=both[0])
    return cache
