"""`parta` and `partb`: what is known before any work, at once and without torch; then the work, if there is any."""

from inat_job import events
from inat_job.jobs import folders
from inat_job.jobs.claim import Claim, claim
from inat_job.settings import Settings
from inat_job.signals import StopFlag


def run(settings: Settings, stop: StopFlag, started: float) -> None:
    """Do the whole job, or what is left of it; `started` is the time.perf_counter() of the process's start."""
    folder = folders.run_folder(settings, settings.run_id)
    standing, stored = claim(folder, settings)
    if standing is Claim.FINISHED:
        events.emit("done", message="Already finished; there is nothing to do.", report=f"{folder.uri}/report.json")
        return
    if standing is Claim.NEW:
        folder.forget()
    events.emit("run", run=folder.uri, standing=standing.value)
    from inat_job.jobs import train  # torch and Lightning take seconds to import

    train.run(settings, folder, stored, stop, started)
