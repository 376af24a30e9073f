"""`prepare`: pull, verify and build the decoded cache, and nothing else."""

from inat_job import events
from inat_job.jobs import stages
from inat_job.jobs.clock import Clock
from inat_job.settings import Settings
from inat_job.signals import StopFlag


def run(settings: Settings, stop: StopFlag, started: float) -> None:
    """Leave a cache that the other commands find."""
    cache = stages.pictures_cache(settings, Clock(started), stop)
    events.emit(
        "done",
        message=f"Prepared {len(cache.index.ids)} pictures of {len(cache.index.classes)} classes.",
        folder=str(cache.folder),
        rejected=len(cache.index.rejected),
    )
