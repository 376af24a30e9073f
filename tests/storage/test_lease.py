"""The lease on a run, over a local folder and S3, with contenders that live, end, fall silent or are paused."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import ConflictError, PreconditionFailed, Preempted
from inat_job.signals import never
from inat_job.storage import Store, attempts, lease, open_store
from inat_job.storage.attempts import Attempt, after, history, may_follow, parse
from inat_job.storage.lease import Lease, LeaseError, acquire

HOLDER = {"host": "here", "pid": "1"}


def unknown(holder: Any) -> bool:
    return False


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "run"))
    return open_store(f"s3://{request.getfixturevalue('s3_bucket')}/run", role="output")


def take(store: Store, seconds: float = 1.0, gone: Any = unknown, stop: Any = never) -> Lease:
    return acquire(store, store, seconds, HOLDER, gone, stop)


@pytest.fixture
def held(store: Store) -> Iterator[Lease]:
    made = take(store)
    yield made
    made.end()


def test_a_living_holder_is_waited_for_and_then_left_alone(store: Store, held: Lease) -> None:
    begun = time.monotonic()
    with pytest.raises(LeaseError, match="is held by attempt 1, which is alive on here"):
        take(store)
    assert 1.0 <= time.monotonic() - begun < 4.0
    held.check()
    assert LeaseError.exit_code == 75


def test_what_a_holder_lets_go_of_is_taken_at_once(store: Store) -> None:
    first = take(store, seconds=60)
    first.started(0)
    first.reached(6)
    first.end("preempted")
    second = take(store, seconds=60)
    second.started(6)
    second.reached(12)
    told = [{"started_step": 0, "ended_step": 6, "why": "preempted"}]
    assert second.history("finished") == [*told, {"started_step": 6, "ended_step": 12, "why": "finished"}]
    second.end()
    assert history(store) == second.history("finished")


def test_each_beat_says_where_the_work_stands_and_when(store: Store) -> None:
    facts: dict[str, Any] = {"phase": "pull"}
    made = acquire(store, store, 0.8, HOLDER, unknown, never, lambda: facts)

    def told() -> Attempt:
        attempt, _ = attempts.newest(store, 1.0)
        assert attempt
        return attempt

    assert told().standing == {"phase": "pull"}
    assert abs(told().at - time.time()) < 5
    facts.update(phase="train", step=7, images_per_s=None)
    until = time.monotonic() + 5
    while told().standing != facts and time.monotonic() < until:
        time.sleep(0.1)
    assert told().standing == {"phase": "train", "step": 7, "images_per_s": None}
    facts.update(step=8)
    made.end("preempted")
    assert (told().why, told().standing["step"]) == ("preempted", 8)
    assert take(store).history("x")[0].keys() == {"started_step", "ended_step", "why"}


@pytest.mark.parametrize("damage", [{"standing": []}, {"standing": {"step": []}}, {"at": -1}, {"at": "now"}])
def test_what_no_holder_says_is_not_believed(damage: dict[str, Any]) -> None:
    said = json.loads(Attempt(3, 5.0, HOLDER, standing={"step": 1}, at=1.0).text())
    assert parse(3, json.dumps(said).encode(), 9.0).standing == {"step": 1}
    assert parse(3, json.dumps(said | damage).encode(), 9.0) == Attempt(3, 9.0, {})


def test_a_holder_known_to_be_gone_is_not_waited_for(store: Store) -> None:
    silent(store, seconds=60)
    begun = time.monotonic()
    made = take(store, seconds=60, gone=lambda holder: holder == HOLDER)
    assert time.monotonic() - begun < 5
    assert [attempt["why"] for attempt in made.history("finished")] == ["killed", "finished"]
    made.end()


def test_a_silent_holder_is_followed_after_its_time_out_and_notices(store: Store) -> None:
    paused = silent(store, seconds=1.0)
    begun = time.monotonic()
    made = take(store, seconds=30)
    assert time.monotonic() - begun >= 1.0
    with pytest.raises(LeaseError, match="taken over"):
        paused.check()
    with pytest.raises(LeaseError):
        paused.guard()
    paused.end("finished")
    assert [attempt["why"] for attempt in made.history("x")] == ["killed", "x"]
    made.check()
    made.end()


def test_a_holder_that_was_paused_notices_even_when_its_object_is_deleted(store: Store) -> None:
    paused = silent(store, seconds=0.5)
    for _ in range(3):
        take(store, seconds=0.5).end()
    assert [number for number, _ in attempts.entries(store)] == [3, 4]
    with pytest.raises(LeaseError):
        paused.check()


def test_of_many_contenders_one_wins(store: Store) -> None:
    won: list[Lease] = []
    lost: list[LeaseError] = []

    def contend() -> None:
        try:
            won.append(take(store, seconds=2.0))
        except LeaseError as error:
            lost.append(error)

    crew = [threading.Thread(target=contend) for _ in range(16)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert (len(won), len(lost)) == (1, 15)
    won[0].end()


def test_a_contender_is_stopped_while_it_waits(store: Store, held: Lease) -> None:
    asked = iter([False, True])
    with pytest.raises(Preempted, match="waiting for another job"):
        take(store, stop=lambda: next(asked))


class Careless:
    """A store that heeds no conditions: it takes every write, or refuses those with conditions by name."""

    def __init__(self, store: Store, refuses: bool) -> None:
        self._store, self._refuses = store, refuses
        self.uri = store.uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, source: Any, *, if_none_match: bool = False, **others: Any) -> Any:
        if if_none_match and self._refuses:
            raise ConflictError("NotImplemented")
        return self._store.put(key, source, **others)


@pytest.mark.parametrize("refuses", [False, True])
def test_without_conditional_writes_the_last_writer_wins(
    refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.5)
    store = Careless(open_store(str(tmp_path)), refuses)
    won: list[Lease] = []

    def contend() -> None:
        with contextlib.suppress(LeaseError):
            won.append(take(store, seconds=2.0))  # type: ignore[arg-type]

    crew = [threading.Thread(target=contend) for _ in range(8)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    assert len(won) == 1
    assert not won[0].conditional
    assert "takes no conditional writes" in capsys.readouterr().out
    won[0].end()


def test_without_conditions_who_is_overwritten_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    store = Careless(open_store(str(tmp_path)), refuses=False)
    first = take(store, seconds=60)  # type: ignore[arg-type]
    first.check()
    store.put(first.key, Attempt(1, 60, HOLDER, nonce="another").text())
    with pytest.raises(LeaseError):
        first.check()


def test_a_store_that_heeds_conditions_is_known_to(held: Lease) -> None:
    assert held.conditional


def test_a_damaged_record_is_a_holder_to_be_outwaited(store: Store) -> None:
    store.put("attempts/7.json", b"{")
    store.put("attempts/mine.txt", b"x")
    begun = time.monotonic()
    made = take(store, seconds=0.5)
    assert time.monotonic() - begun >= 0.5
    assert made.key == "attempts/8.json"
    made.end()


def silent(store: Store, seconds: float) -> Lease:
    """A lease whose holder says nothing more, as if its process were stopped."""
    made = take(store, seconds=seconds)
    made._over.set()
    return made


ATTEMPTS = st.builds(
    Attempt,
    number=st.integers(1, 99),
    lease_s=st.floats(0.1, 100),
    holder=st.just(HOLDER),
    why=st.sampled_from(["running", "preempted", "finished"]),
    ended_step=st.integers(0, 50),
)


@given(ATTEMPTS, st.floats(0, 200), st.booleans())
def test_only_the_living_are_not_followed(attempt: Attempt, unchanged_s: float, known_gone: bool) -> None:
    follow = may_follow(attempt, unchanged_s, lambda holder: known_gone)
    alive = attempt.why == "running" and not known_gone and unchanged_s < attempt.lease_s
    assert follow is not alive


@given(st.lists(st.sampled_from(["running", "preempted"]), min_size=1, max_size=6))
def test_each_attempt_tells_all_before_it_and_has_a_higher_number(ends: list[str]) -> None:
    last: Attempt | None = None
    for step, why in enumerate(ends):
        made = after(last, 1.0, HOLDER, "n")
        assert made.number > (last.number if last else 0)
        last = Attempt(**{**vars(made), "why": why, "ended_step": step})
        assert parse(last.number, last.text(), 1.0) == last
    assert last is not None
    assert [each["why"] for each in after(last, 1.0, HOLDER, "n").earlier] == [
        "killed" if why == "running" else why for why in ends
    ]


@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_that_can_be_followed(data: bytes) -> None:
    attempt = parse(3, data, 5.0)
    assert (attempt.number, attempt.why) == (3, "running")
    assert after(attempt, 1.0, HOLDER, "n").number == 4


def test_one_who_creates_second_sees_who_is_there(store: Store, held: Lease) -> None:
    with pytest.raises(PreconditionFailed):
        store.put(held.key, b"mine", if_none_match=True)
