"""Many looks at once: in order, in time, and the worst counts."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job import errors
from inat_job.errors import BadDataError, JobError, Preempted, TransientError
from inat_job.run.checks import ORDER, Caution, Check, Finding, look, together, worst
from inat_job.signals import never

FORESEEN = (errors.UsageError, errors.BadDataError, TransientError, errors.NoPermissionError, errors.ConflictError)


def failing(error: Exception) -> Check:
    def look() -> str:
        raise error

    return Check("x", look, 1.0)


def test_each_outcome() -> None:
    assert look(Check("x", lambda: "good", 1.0)) == Finding("x", "ok", "good")
    assert look(Check("x", lambda: Caution("so so", "mend it"), 1.0)) == Finding("x", "warn", "so so", "mend it")
    found = look(failing(BadDataError("s3://b/x: is gone: check --data.")))
    assert (found.outcome, found.what, found.mend, found.code) == ("fail", "s3://b/x: is gone", "check --data", 65)
    found = look(failing(ZeroDivisionError("secret")))
    assert (found.outcome, found.code, "secret" in found.what) == ("fail", 1, False)


def test_all_are_at_work_at_once_and_told_in_order() -> None:
    def slow(name: str, seconds: float) -> Check:
        return Check(name, lambda: time.sleep(seconds) or name, 5.0)

    begun = time.monotonic()
    found = list(together([slow("a", 0.5), slow("b", 0.1), slow("c", 0.5), slow("d", 0.0)], never))
    assert [each.what for each in found] == ["a", "b", "c", "d"]
    assert time.monotonic() - begun < 0.9


def test_silence_is_told_and_waited_for_no_longer() -> None:
    silent = [Check(name, lambda: time.sleep(3) or "late", 0.4) for name in "abc"]
    begun = time.monotonic()
    found = list(together([*silent, Check("d", lambda: "there", 0.4)], never))
    assert time.monotonic() - begun < 1.0
    assert [each.code for each in found] == [75, 75, 75, 0]
    assert isinstance(found[0].error, TransientError)
    assert "no answer within" in found[0].what


def test_a_stop_ends_it() -> None:
    with pytest.raises(Preempted):
        list(together([Check("a", lambda: time.sleep(3) or "late", 5.0)], lambda: True))


@given(st.lists(st.sampled_from([*FORESEEN, ZeroDivisionError, None])))
def test_what_has_to_be_mended_counts_before_what_may_pass(kinds: list[type[Exception] | None]) -> None:
    found = [Finding("x", "fail" if kind else "ok", "", error=kind("") if kind else None) for kind in kinds]
    result = worst(found)
    codes = [each.code for each in found if each.code]
    assert (result.code if result else 0) == min(codes, key=ORDER.index, default=0)
    if any(issubclass(kind, JobError) and kind is not TransientError for kind in kinds if kind):
        assert result
        assert result.code != 75
