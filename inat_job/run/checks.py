"""Several checks at once, each with its own time-out: what each reports, and which failure decides the exit code."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import partial

from inat_job import signals
from inat_job.errors import JobError, TransientError
from inat_job.signals import Stop
from inat_job.storage.threads import start_daemon

WORST_FIRST = (1, 2, 78, 77, 65, 75)
"""Exit codes, worst first: what a person must fix comes before what may pass by itself, or a platform would retry in
vain."""

_TICK_S = 0.05


@dataclass(frozen=True)
class CheckWarning:
    """What a check returns when the job can run, but a person should know something: what, and how to fix it."""

    message: str
    fix: str


@dataclass(frozen=True)
class Check:
    """One check. `run` returns what it found, or a CheckWarning, and raises the error that would end the job; its
    answer is waited for up to `timeout_s` seconds."""

    name: str
    run: Callable[[], str | CheckWarning]
    timeout_s: float


@dataclass(frozen=True)
class CheckResult:
    """What a check found: `outcome` is ok, warn or fail; `error` is the one that would end the job."""

    check: str
    outcome: str
    message: str
    fix: str = ""
    error: Exception | None = None

    @property
    def code(self) -> int:
        """The exit code that the job would end with."""
        if self.error is None:
            return 0
        return self.error.exit_code if isinstance(self.error, JobError) else 1


def run_checks(checks: Sequence[Check], stop: Stop) -> Iterator[CheckResult]:
    """Run all checks in parallel, and yield their results in the order of `checks`.

    The threads are daemons, so one that waits for a silent server does not hold up the process. Raises Preempted at
    `stop`.
    """
    started = time.monotonic()
    running = [start_daemon(partial(run_check, check), f"check {check.name}") for check in checks]
    for check, future in zip(checks, running, strict=True):
        while not futures.wait([future], _TICK_S).done and time.monotonic() - started < check.timeout_s:
            signals.check(stop, "checking what the job needs")
        yield future.result() if future.done() else _timed_out(check)


def run_check(check: Check) -> CheckResult:
    """The result of one check. Raises nothing."""
    try:
        found = check.run()
    except JobError as error:
        message, _, fix = " ".join(str(error).split()).rpartition(": ")  # our messages end with the fix
        return CheckResult(check.name, "fail", message, fix.rstrip("."), error)
    except Exception as error:
        return CheckResult(check.name, "fail", f"unexpected {type(error).__name__}", "this is a bug, report it", error)
    if isinstance(found, CheckWarning):
        return CheckResult(check.name, "warn", found.message, found.fix)
    return CheckResult(check.name, "ok", found)


def worst_failure(results: Iterable[CheckResult]) -> CheckResult | None:
    """The failure that decides the exit code, the first of its kind; None if all checks passed."""
    failed = [result for result in results if result.error]
    return min(failed, key=lambda each: WORST_FIRST.index(each.code) if each.code in WORST_FIRST else 0, default=None)


def _timed_out(check: Check) -> CheckResult:
    message = f"The check of {check.name} had no answer within {check.timeout_s:.0f} s"
    fix = "check the network and the address, or try again later"
    return CheckResult(check.name, "fail", message, fix, TransientError(f"{message}: {fix}."))
