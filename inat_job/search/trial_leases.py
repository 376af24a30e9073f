"""Which trials nobody works on, as the leases of their runs show."""

import time
from collections.abc import Callable

from inat_job.host import process
from inat_job.storage.attempts import latest_attempt, may_follow
from inat_job.storage.base import Store


class TrialLeases:
    """Watches the leases of trials. `open_trial` gives the store of a trial's run folder, `lease_s` their time-out."""

    def __init__(
        self, open_trial: Callable[[int], Store], lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_trial, self._lease_s, self._clock = open_trial, lease_s, clock
        self._seen: dict[int, tuple[str, float]] = {}

    def is_free(self, number: int, begun_at: float) -> bool:
        """Whether no live job holds the run of a trial, which was begun at a time in seconds since 1970.

        A trial without a run yet is free once the worker that drew it has had a lease's time to start it.
        """
        attempt, version = latest_attempt(self._open_trial(number), self._lease_s)
        if attempt is None:
            return time.time() - begun_at > self._lease_s
        if self._seen.get(number, ("", 0.0))[0] != version:
            self._seen[number] = version, self._clock()
        return may_follow(attempt, self._clock() - self._seen[number][1], process.has_ended)
