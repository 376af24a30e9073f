"""The faults between a job and its object store, as data: which fault, on which requests, for how long.

Tests arm faults on a `Faults` while the proxy runs, and read from it how often each one hit.
"""

import re
import threading
import time
from dataclasses import dataclass, field

EXPIRED = "The provided token has expired."

# Status, code and message of S3's own error answers; botocore and the job go by the code.
ANSWERS = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "429": (429, "TooManyRequests", "Too many requests."),
    "expired": (400, "ExpiredToken", EXPIRED),
    "expired-403": (403, "ExpiredToken", EXPIRED),
    "denied": (403, "AccessDenied", "Access Denied"),
}
BODIES = ("truncate", "flip", "rot", "stall", "throttle")
"""Faults of a body: an upload's, or otherwise the answer's."""

HEADS = ("page", "status-200", "whole", "shifted", "etag")
"""Faults of a download's head: a page of HTML instead of the answer, another status, with the whole object instead of a
range, another range, and another ETag."""

KINDS = (*ANSWERS, *BODIES, *HEADS, "reset", "latency", "outage", "deaf")
LIST = r"GET /[^/?]+/?\?(.*&)?list-type="
"""A pattern of the requests that list a bucket."""

_AMOUNTS = {"stall": 20.0, "latency": 0.5, "throttle": 1e6, "outage": 60.0}


@dataclass
class Fault:
    """One fault and its tally.

    It hits the requests whose `METHOD /bucket/key?query` matches the pattern `match`, starting with the first request
    that matches `trigger` (by default `match`): the first `times` of them, or for `seconds`, or forever; and only every
    `every`th. `amount` is the pause of a stall or of latency in seconds, the bytes per second of a throttle, or the
    seconds of an outage, which begins with a hit and then refuses every connection; after a hit of "deaf", none is
    answered any more, as behind a firewall that drops all. `lines` are the requests it hit.
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
            raise ValueError(f"{self.kind} is no fault; the faults are {', '.join(KINDS)}")
        self.amount = self.amount or _AMOUNTS.get(self.kind, 0.0)

    def applies(self, line: str, now: float) -> bool:
        """Whether it hits this request; the first request that matches its trigger starts its time."""
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
    """The armed faults, and every request so far. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[Fault] = []
        self.seen: list[str] = []

    def arm(self, fault: Fault) -> Fault:
        """Arm a fault from now on."""
        with self._lock:
            self._armed.append(fault)
        return fault

    def clear(self) -> None:
        """Disarm all faults; tallies are kept."""
        with self._lock:
            self._armed = []

    def pick(self, line: str) -> Fault | None:
        """The fault that hits this request, or None; the hit is counted."""
        with self._lock:
            self.seen.append(line)
            found = [fault for fault in self._armed if fault.applies(line, time.monotonic())]
            if not found:
                return None
            found[0].lines.append(line)
            return found[0]

    def refund(self, fault: Fault, line: str) -> None:
        """Take back a hit without effect, such as on an empty body."""
        with self._lock:
            fault.lines.remove(line)
