"""What `status` and `prepare` are asked for beside settings."""

import math
from dataclasses import dataclass

from inat_job import knobs
from inat_job.errors import UsageError
from inat_job.knobs import knob

LIST = "list"


@dataclass(frozen=True)
class StatusRequest:
    """How often is looked."""

    watch: bool = knob(False, "Look again until nobody works on the run any more, and end with its exit code")


@dataclass(frozen=True)
class PrepareRequest:
    """Whether old caches go, and nothing else is done."""

    prune: str | None = knob(
        None, "List what lies in --cache-dir and stop; with an age as 30d, delete what no job used so long", bare=LIST
    )

    def __post_init__(self) -> None:
        _ = self.unused_s  # which looks whether it is an age

    @property
    def unused_s(self) -> float | None:
        """Seconds without use after which a cache is deleted; None where nothing is. Raises UsageError."""
        if self.prune in (None, LIST):
            return None
        age = knobs.timed(knobs.knobs_of(type(self))["prune"][0])
        seconds = float(knobs.parse(age, float, self.prune))
        if not 0 <= seconds < math.inf:
            raise UsageError(f"{age.flag} is {self.prune}: it must be at least 0, such as 30d.")
        return seconds
