"""What can go wrong between a job and its object store, as data: which fault, on which requests, for how long.

`Faults` is the switchboard: tests arm faults on it while the proxy runs, and read off it how often each one hit.
"""

import re
import threading
import time
from dataclasses import dataclass, field

EXPIRED = "The provided token has expired."

# Status, code and message of the answers that S3 itself gives: botocore and the job go by the code.
ANSWERS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "429": (429, "TooManyRequests", "Too many requests."),
    "expired": (400, "ExpiredToken", EXPIRED),
    "expired-403": (403, "ExpiredToken", EXPIRED),
    "denied": (403, "AccessDenied", "Access Denied"),
}
BODIES = ("truncate", "flip", "rot", "stall", "throttle")
"""Faults of a body: that of an upload, or else that of the answer."""

KINDS = (*ANSWERS, *BODIES, "reset", "latency", "outage")
LIST = r"GET /[^/?]+/?\?(.*&)?list-type="
"""Matches requests that list a bucket."""

_AMOUNTS = {"stall": 20.0, "latency": 0.5, "throttle": 1e6, "outage": 60.0}


@dataclass
class Fault:
    """One fault and its tally.

    It hits requests whose `METHOD /bucket/key?query` the pattern `match` is found in, from the first one on that
    `trigger` (by default `match`) is found in: the first `times` of them, or for `seconds`, or for good; of these only
    each `every`th. `amount` is the pause in seconds of a stall or of latency, the bytes per second of throttle, the
    seconds of an outage, which begins with a hit and then cuts off everybody. `lines` are the requests that it hit.
    """

    kind: str
    match: str = ""
    trigger: str = ""
    times: int | None = None
    seconds: float | None = None
    amount: float = 0.0
    every: int = 1
    lines: list[str] = field(default_factory=list)
    began: float | None = None
    matched: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind} is no fault: there are {', '.join(KINDS)}")
        self.amount = self.amount or _AMOUNTS.get(self.kind, 0.0)

    def takes(self, line: str, now: float) -> bool:
        """Whether it hits this request; the first that its trigger is found in starts its time."""
        if self.began is None and re.search(self.trigger or self.match, line):
            self.began = now
        if self.began is None or not self._lasts(now) or not re.search(self.match, line):
            return False
        self.matched += 1
        return self.matched % self.every == 0

    @property
    def hits(self) -> int:
        """How many requests it hit."""
        return len(self.lines)

    def _lasts(self, now: float) -> bool:
        assert self.began is not None
        in_time = self.seconds is None or now - self.began < self.seconds
        return in_time and (self.times is None or self.hits < self.times)


class Faults:
    """The faults that are armed, and every request that was seen. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[Fault] = []
        self.seen: list[str] = []

    def arm(self, fault: Fault) -> Fault:
        """Let a fault hit from now on."""
        with self._lock:
            self._armed.append(fault)
        return fault

    def clear(self) -> None:
        """Let nothing hit any more; tallies stay."""
        with self._lock:
            self._armed = []

    def pick(self, line: str) -> Fault | None:
        """The fault that hits this request, counted."""
        with self._lock:
            self.seen.append(line)
            found = [fault for fault in self._armed if fault.takes(line, time.monotonic())]
            if not found:
                return None
            found[0].lines.append(line)
            return found[0]

    def refund(self, fault: Fault, line: str) -> None:
        """Uncount a hit that met nothing, such as a body of no bytes."""
        with self._lock:
            fault.lines.remove(line)
