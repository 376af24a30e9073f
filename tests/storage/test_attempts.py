"""The records of attempts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.storage.attempts import Attempt, may_follow, next_attempt, parse_attempt

HOLDER = {"host": "here", "pid": "1"}


@pytest.mark.parametrize("damage", [{"progress": []}, {"progress": {"step": []}}, {"at": -1}, {"at": "now"}])
def test_damaged_field_invalidates_record(damage: dict[str, Any]) -> None:
    fields = json.loads(Attempt(3, 5.0, HOLDER, progress={"step": 1}, at=1.0).to_json())
    assert parse_attempt(3, json.dumps(fields).encode(), 9.0).progress == {"step": 1}
    assert parse_attempt(3, json.dumps(fields | damage).encode(), 9.0) == Attempt(3, 9.0, {})


ATTEMPTS = st.builds(
    Attempt,
    number=st.integers(1, 99),
    lease_s=st.floats(0.1, 100),
    holder=st.just(HOLDER),
    why=st.sampled_from(["running", "preempted", "finished"]),
    ended_step=st.integers(0, 50),
)


@given(ATTEMPTS, st.floats(0, 200), st.booleans())
def test_may_follow(attempt: Attempt, unchanged_s: float, is_gone: bool) -> None:
    may = may_follow(attempt, unchanged_s, lambda holder: is_gone)
    alive = attempt.why == "running" and not is_gone and unchanged_s < attempt.lease_s
    assert may is not alive


@given(st.lists(st.sampled_from(["running", "preempted"]), min_size=1, max_size=6))
def test_next_attempt_numbers_and_history(ends: list[str]) -> None:
    last: Attempt | None = None
    for step, why in enumerate(ends):
        attempt = next_attempt(last, 1.0, HOLDER, "n")
        assert attempt.number > (last.number if last else 0)
        last = Attempt(**{**vars(attempt), "why": why, "ended_step": step})
        assert parse_attempt(last.number, last.to_json(), 1.0) == last
    assert last is not None
    assert [each["why"] for each in next_attempt(last, 1.0, HOLDER, "n").earlier] == [
        "killed" if why == "running" else why for why in ends
    ]


@given(st.binary(max_size=80))
def test_any_bytes_parse_as_running_attempt(data: bytes) -> None:
    attempt = parse_attempt(3, data, 5.0)
    assert (attempt.number, attempt.why) == (3, "running")
    assert next_attempt(attempt, 1.0, HOLDER, "n").number == 4
