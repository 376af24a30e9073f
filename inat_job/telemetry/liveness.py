"""A file whose age tells whether the job still gets on: touched by the work itself, so that a job that hangs lets it
grow old, and whoever looks at it (HEALTHCHECK, livenessProbe) may end the job.

What beats: every bit of progress in every phase (bytes fetched, images decoded, batches trained or evaluated), every
look at the stop flag between two pieces of work, and waits that have a time-out of their own (a store's answer, another
job's lock, the last uploads). What is silent, and for how long at most: the first batch of a network that is compiled,
once for each set of stages that opens (by the estimate in training/compiling.py 30 s and 0.6 s a layer: 2 minutes for
ResNet-50, 4 for ResNet-152, and maybe twice that on a slow processor); the import of torch and Lightning (seconds, from
a cold disk over a network a minute or two); the hash of a checkpoint or of features (seconds a GB); the plots. So
STALE_MINUTES is nearly twice the longest.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from inat_job import watchdog

VARIABLE = "INAT_JOB_ALIVE_FILE"
"""Names the file; where it is not set there is none."""

STALE_MINUTES = 15
"""Minutes after which a job that has not touched it hangs."""


def probe(path: str) -> tuple[str, ...]:
    """The command that fails for a job that hangs; `find` alone succeeds whether or not it finds anything."""
    return ("sh", "-c", f"find {path} -mmin -{STALE_MINUTES} | grep -q .")


def watch(environment: Mapping[str, str] = os.environ) -> None:
    """Have the file touched by the work from here on, and at once. One that cannot be written ends no job."""
    if not environment.get(VARIABLE):
        return
    path = Path(environment[VARIABLE])

    def touch() -> None:
        with contextlib.suppress(OSError):
            path.touch()

    watchdog.watched_by(touch)
    watchdog.beat()
