"""`prune --runs`: delete unfinished runs that no job has worked on for long. Finished runs are never deleted."""

from inat_job import events
from inat_job.command_options import PruneOptions
from inat_job.event_text import counted, printable
from inat_job.run.progress import FINISHED
from inat_job.run.run_listing import OF_SWEEP, delete_unfinished, is_old, list_runs, table
from inat_job.settings import Settings
from inat_job.signals import Stop


def run(settings: Settings, request: PruneOptions, stop: Stop) -> None:
    """List the unfinished runs under `--output`; with an age, delete those that are older.

    Raises Preempted and what the store raises.
    """
    unfinished = [each for each in list_runs(settings, stop) if each.state not in (FINISHED, OF_SWEEP)]
    if not events.is_json() and unfinished:
        print("\n".join(map(printable, table(unfinished))), flush=True)
    age_s, lease_s, deleted = request.age_s, settings.run.lease_seconds, 0
    for each in unfinished:
        gone = age_s is not None and is_old(each, age_s) and delete_unfinished(each, lease_s, stop)
        deleted += gone
        if events.is_json():
            events.emit("unfinished", **each.fields, deleted=gone)
    message = f"{settings.run.output} has {counted(len(unfinished), 'unfinished run', 'unfinished runs')}"
    if age_s is None:
        message += "; nothing is deleted: to delete those without a sign of life for 30 days, use --runs 30d."
    else:
        message += f", of which {counted(deleted, 'is deleted', 'are deleted')}."
    events.emit("done", message=message, deleted=deleted)
