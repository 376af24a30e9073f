"""`parta` and `partb`: what is known before any work, at once and without torch; then the work, if there is any."""

from typing import Any

from inat_job import events
from inat_job.jobs import folders
from inat_job.jobs.claim import CONFIG, Claim, claim, config_of
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder


def run(settings: Settings, stop: StopFlag, started: float) -> None:
    """Do the whole job, or what is left of it; `started` is the time.perf_counter() of the process's start."""
    folder = folders.run_folder(settings, settings.run_id)
    standing, stored = claim(folder, settings)
    if standing is Claim.FINISHED:
        events.emit("done", message="Already finished; there is nothing to do.", report=f"{folder.uri}/report.json")
        return
    if stored is None:
        stored = _begin(folder, settings)
    events.emit("run", run=folder.uri, standing=standing.value)
    from inat_job.jobs import train  # torch and Lightning take seconds to import

    train.run(settings, folder, stored, stop, started)


def _begin(folder: RunFolder, settings: Settings) -> dict[str, Any]:
    """Claim a new run's folder, which also shows whether it can be written to, before hours are spent on it."""
    folder.forget()
    config = config_of(settings, {}, command="train")
    folder.write_json(CONFIG, config)
    folder.publish(CONFIG)
    return config
