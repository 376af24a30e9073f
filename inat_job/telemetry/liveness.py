"""The liveness file: the work itself touches it, so its age shows whether the job still makes progress.

HEALTHCHECK or livenessProbe may end a job whose file is too old.

The file is touched on all progress in every phase (bytes downloaded, images decoded, batches trained or evaluated), on
every check of the stop flag between two pieces of work, and during waits that have a time-out of their own (a store's
response, another job's lock, the other machines, the last uploads). It is not touched, for as long as given, during:
the first batch of a compiled network, once for each set of stages that is unfrozen (about 30 s and 0.6 s a layer: 2
minutes for ResNet-50, 4 for ResNet-152, perhaps twice that on a slow processor); the import of torch and Lightning
(seconds, from a cold network disk a minute or two); hashing a checkpoint or features (seconds per GB); the plots.
STALE_MINUTES is therefore nearly twice the longest of these.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from inat_job import watchdog

VARIABLE = "INAT_JOB_ALIVE_FILE"
"""The variable with the file's path; without it there is no such file."""

STALE_MINUTES = 15
"""A job whose file is older than this many minutes is considered to hang."""


def start(environment: Mapping[str, str] = os.environ) -> None:
    """Touch the file now and on all progress from now on. A file that cannot be written does not end the job."""
    if not environment.get(VARIABLE):
        return
    path = Path(environment[VARIABLE])

    def touch() -> None:
        with contextlib.suppress(OSError):
            path.touch()

    watchdog.watched_by(touch)
    watchdog.beat()
