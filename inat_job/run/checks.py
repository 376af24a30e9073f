"""Many looks at once, each with its own time-out: what each found, and which failure counts."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from inat_job import signals
from inat_job.errors import JobError, TransientError
from inat_job.signals import Stop

ORDER = (1, 2, 78, 77, 65, 75)
"""Exit codes from the worst: what somebody has to mend comes before what may pass by itself, or a platform would try
in vain again."""

_TICK_S = 0.05


@dataclass(frozen=True)
class Caution:
    """What a look returns that a person should know, though the job can do without: what, and its mend."""

    what: str
    mend: str


@dataclass(frozen=True)
class Check:
    """A look at one thing: returns what it found, or a Caution; raises what the job would end with. `seconds` are the
    longest that it is waited for."""

    name: str
    look: Callable[[], str | Caution]
    seconds: float


@dataclass(frozen=True)
class Finding:
    """What a look found: `outcome` is ok, warn or fail, `error` what the job would end with."""

    check: str
    outcome: str
    what: str
    mend: str = ""
    error: Exception | None = None

    @property
    def code(self) -> int:
        """The exit code that the job would end with."""
        if self.error is None:
            return 0
        return self.error.exit_code if isinstance(self.error, JobError) else 1


@dataclass
class _Running:
    check: Check
    done: threading.Event = field(default_factory=threading.Event)
    finding: Finding | None = None

    def run(self) -> None:
        self.finding = look(self.check)
        self.done.set()


def together(checks: Sequence[Check], stop: Stop) -> Iterator[Finding]:
    """Look at all at once, and yield what was found in the order of the checks.

    The threads are daemons: who waits for a silent server does not hold up the process. Raises Preempted at `stop`.
    """
    begun = time.monotonic()
    running = [_Running(check) for check in checks]
    for each in running:
        threading.Thread(target=each.run, name=f"check {each.check.name}", daemon=True).start()
    for each in running:
        while not each.done.wait(_TICK_S) and time.monotonic() - begun < each.check.seconds:
            signals.check(stop, "looking at what the job needs")
        yield each.finding or _silent(each.check)


def look(check: Check) -> Finding:
    """What a look finds; it raises nothing."""
    try:
        found = check.look()
    except JobError as error:
        what, _, mend = " ".join(str(error).split()).rpartition(": ")  # our sentences end in their mend
        return Finding(check.name, "fail", what, mend.rstrip("."), error)
    except Exception as error:
        return Finding(check.name, "fail", f"unexpected {type(error).__name__}", "this is a bug, report it", error)
    if isinstance(found, Caution):
        return Finding(check.name, "warn", found.what, found.mend)
    return Finding(check.name, "ok", found)


def worst(findings: Iterable[Finding]) -> Finding | None:
    """The failure whose code the whole ends with, the first of its kind."""
    failed = [finding for finding in findings if finding.error]
    return min(failed, key=lambda finding: ORDER.index(finding.code) if finding.code in ORDER else 0, default=None)


def _silent(check: Check) -> Finding:
    what = f"The check of {check.name} had no answer within {check.seconds:.0f} s"
    mend = "check the network and the address, or try again later"
    return Finding(check.name, "fail", what, mend, TransientError(f"{what}: {mend}."))
