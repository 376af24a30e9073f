"""Checks run in parallel, report in order and in time, and the worst failure decides the exit code."""

import threading
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job import errors
from inat_job.errors import BadDataError, JobError, Preempted, TransientError
from inat_job.run.checks import WORST_FIRST, Check, CheckResult, CheckWarning, run_check, run_checks, worst_failure
from inat_job.signals import never

EXPECTED_ERRORS = (errors.UsageError, errors.BadDataError, TransientError, errors.NoPermissionError)
EXPECTED_ERRORS += (errors.ConflictError,)


def failing_check(error: Exception) -> Check:
    def run() -> str:
        raise error

    return Check("x", run, 1.0)


def test_check_outcomes_ok_warn_and_fail() -> None:
    assert run_check(Check("x", lambda: "good", 1.0)) == CheckResult("x", "ok", "good")
    warning = CheckWarning("so so", "change it")
    assert run_check(Check("x", lambda: warning, 1.0)) == CheckResult("x", "warn", "so so", "change it")
    found = run_check(failing_check(BadDataError("s3://b/x: is gone: check --data.")))
    assert (found.outcome, found.message, found.fix, found.code) == ("fail", "s3://b/x: is gone", "check --data", 65)
    found = run_check(failing_check(ZeroDivisionError("secret")))
    assert (found.outcome, found.code, "secret" in found.message) == ("fail", 1, False)


def test_checks_run_in_parallel_and_results_are_in_order() -> None:
    together, last = threading.Barrier(3, timeout=60), threading.Event()

    def check(name: str) -> str:
        together.wait()
        assert name != "a" or last.wait(60)
        if name == "c":
            last.set()
        return name

    checks = [Check(name, partial(check, name), 60.0) for name in "abc"]
    results = list(run_checks([*checks, Check("d", lambda: "d", 60.0)], never))
    assert [each.message for each in results] == ["a", "b", "c", "d"]


def test_check_without_answer_times_out_with_75() -> None:
    """All time-outs count from the same moment."""
    ended = threading.Event()
    silent = [Check(name, lambda: str(ended.wait(60)), 1.0) for name in "abcde"]
    started = time.monotonic()
    results = list(run_checks([*silent, Check("f", lambda: "in time", 60.0)], never))
    assert time.monotonic() - started < 4.0
    ended.set()
    assert [each.code for each in results] == [75, 75, 75, 75, 75, 0]
    assert isinstance(results[0].error, TransientError)
    assert "no answer within" in results[0].message


def test_stop_signal_ends_running_checks() -> None:
    with pytest.raises(Preempted):
        list(run_checks([Check("a", lambda: time.sleep(3) or "late", 5.0)], lambda: True))


@given(st.lists(st.sampled_from([*EXPECTED_ERRORS, ZeroDivisionError, None])))
def test_worst_failure_puts_permanent_before_transient(kinds: list[type[Exception] | None]) -> None:
    results = [CheckResult("x", "fail" if kind else "ok", "", error=kind("") if kind else None) for kind in kinds]
    worst = worst_failure(results)
    codes = [each.code for each in results if each.code]
    assert (worst.code if worst else 0) == min(codes, key=WORST_FIRST.index, default=0)
    if any(issubclass(kind, JobError) and kind is not TransientError for kind in kinds if kind):
        assert worst
        assert worst.code != 75
