"""The lease on a run, over a local folder and S3, with contenders that live, end, fall silent or are frozen."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inat_job import watchdog
from inat_job.errors import ConflictError, PreconditionFailed, Preempted
from inat_job.signals import never
from inat_job.storage import Store, attempts, lease, open_store
from inat_job.storage.attempts import Attempt, history
from inat_job.storage.interruptible import InterruptibleStore
from inat_job.storage.lease import Lease, LeaseError, acquire

HOLDER = {"host": "here", "pid": "1"}


def none_is_known_gone(holder: Any) -> bool:
    return False


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "run"))
    return open_store(f"s3://{request.getfixturevalue('s3_bucket')}/run", role="output")


def acquire_lease(store: Store, seconds: float = 1.0, is_gone: Any = none_is_known_gone, stop: Any = never) -> Lease:
    return acquire(store, store, seconds, HOLDER, is_gone, stop)


@pytest.fixture
def held(store: Store) -> Iterator[Lease]:
    acquired = acquire_lease(store)
    yield acquired
    acquired.end()


def frozen(store: Store, seconds: float) -> Lease:
    """A lease whose holder renews it no more, as if its process were frozen."""
    acquired = acquire_lease(store, seconds=seconds)
    acquired._ended.set()
    return acquired


def test_live_holder_keeps_lease(store: Store, held: Lease) -> None:
    start = time.monotonic()
    with pytest.raises(LeaseError, match="is held by attempt 1, which is alive on here"):
        acquire_lease(store)
    assert 1.0 <= time.monotonic() - start < 4.0
    held.check()
    assert LeaseError.exit_code == 75


def test_released_lease_is_acquired_at_once(store: Store) -> None:
    first = acquire_lease(store, seconds=60)
    first.started(0)
    first.reached(6)
    first.end("preempted")
    second = acquire_lease(store, seconds=60)
    second.started(6)
    second.reached(12)
    earlier = [{"started_step": 0, "ended_step": 6, "why": "preempted"}]
    assert second.history("finished") == [*earlier, {"started_step": 6, "ended_step": 12, "why": "finished"}]
    second.end()
    assert history(store) == second.history("finished")


def test_renewal_reports_progress(store: Store) -> None:
    progress: dict[str, Any] = {"phase": "pull"}
    acquired = acquire(store, store, 0.8, HOLDER, none_is_known_gone, never, lambda: progress)

    def latest() -> Attempt:
        attempt, _ = attempts.latest_attempt(store, 1.0)
        assert attempt
        return attempt

    assert latest().progress == {"phase": "pull"}
    assert abs(latest().at - time.time()) < 5
    progress.update(phase="train", step=7, images_per_s=None)
    until = time.monotonic() + 5
    while latest().progress != progress and time.monotonic() < until:
        time.sleep(0.1)
    assert latest().progress == {"phase": "train", "step": 7, "images_per_s": None}
    progress.update(step=8)
    acquired.end("preempted")
    assert (latest().why, latest().progress["step"]) == ("preempted", 8)
    assert acquire_lease(store).history("x")[0].keys() == {"started_step", "ended_step", "why"}


def test_holder_known_to_be_gone_is_replaced_at_once(store: Store) -> None:
    frozen(store, seconds=60)
    start = time.monotonic()
    acquired = acquire_lease(store, seconds=60, is_gone=lambda holder: holder == HOLDER)
    assert time.monotonic() - start < 5
    assert [attempt["why"] for attempt in acquired.history("finished")] == ["killed", "finished"]
    acquired.end()


def test_expired_lease_is_taken_over(store: Store) -> None:
    stale = frozen(store, seconds=1.0)
    start = time.monotonic()
    acquired = acquire_lease(store, seconds=30)
    assert time.monotonic() - start >= 1.0
    with pytest.raises(LeaseError, match="taken over"):
        stale.check()
    with pytest.raises(LeaseError):
        stale.raise_if_lost()
    stale.end("finished")
    assert [attempt["why"] for attempt in acquired.history("x")] == ["killed", "x"]
    acquired.check()
    acquired.end()


def test_stale_holder_notices_takeover_after_deletion(store: Store) -> None:
    stale = frozen(store, seconds=0.5)
    for _ in range(3):
        acquire_lease(store, seconds=0.5).end()
    assert [number for number, _ in attempts.list_attempts(store)] == [3, 4]
    with pytest.raises(LeaseError):
        stale.check()


def at_once(n: int, call: Callable[[], None]) -> None:
    threads = [threading.Thread(target=call) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.soak
def test_concurrent_acquire_has_one_winner(store: Store) -> None:
    winners: list[Lease] = []
    losers: list[LeaseError] = []

    def contend() -> None:
        try:
            winners.append(acquire_lease(store, seconds=10.0))  # long enough for a renewal on a busy machine
        except LeaseError as error:
            losers.append(error)

    at_once(16, contend)
    assert (len(winners), len(losers)) == (1, 15)
    winners[0].end()


def test_stop_while_waiting_for_lease(store: Store, held: Lease) -> None:
    stop_values = iter([False, True])
    with pytest.raises(Preempted, match="waiting for another job"):
        acquire_lease(store, stop=lambda: next(stop_values))


class UnconditionalStore:
    """A store without conditional writes: it ignores the condition, or refuses it by name."""

    def __init__(self, store: Store, refuses: bool) -> None:
        self._store, self._refuses = store, refuses
        self.uri = store.uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, source: Any, *, if_none_match: bool = False, **others: Any) -> Any:
        if if_none_match and self._refuses:
            raise ConflictError("NotImplemented")
        return self._store.put(key, source, **others)


@pytest.mark.soak
@pytest.mark.parametrize("refuses", [False, True])
def test_acquire_without_conditional_writes(
    refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.5)
    store = UnconditionalStore(open_store(str(tmp_path)), refuses)
    winners: list[Lease] = []

    def contend() -> None:
        with contextlib.suppress(LeaseError):
            winners.append(acquire_lease(store, seconds=10.0))  # long enough for a renewal on a busy machine  # type: ignore[arg-type]

    at_once(8, contend)
    assert len(winners) == 1
    assert not winners[0].conditional
    assert "takes no conditional writes" in capsys.readouterr().out
    winners[0].end()


def test_overwritten_holder_notices_without_conditional_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    store = UnconditionalStore(open_store(str(tmp_path)), refuses=False)
    first = acquire_lease(store, seconds=60)  # type: ignore[arg-type]
    first.check()
    store.put(first.key, Attempt(1, 60, HOLDER, nonce="another").to_json())
    with pytest.raises(LeaseError):
        first.check()


def test_lease_knows_conditional_store(held: Lease) -> None:
    assert held.conditional


def test_damaged_record_expires(store: Store) -> None:
    store.put("attempts/7.json", b"{")
    store.put("attempts/mine.txt", b"x")
    start = time.monotonic()
    acquired = acquire_lease(store, seconds=0.5)
    assert time.monotonic() - start >= 0.5
    assert acquired.key == "attempts/8.json"
    acquired.end()


def test_second_create_fails(store: Store, held: Lease) -> None:
    with pytest.raises(PreconditionFailed):
        store.put(held.key, b"mine", if_none_match=True)


def test_waiting_says_for_whom_and_how_long_and_is_no_progress(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = frozen(store, seconds=2.0)
    beats: list[None] = []
    monkeypatch.setattr(lease, "REPORT_EVERY_S", 0.5)
    watchdog.watched_by(lambda: beats.append(None))
    monkeypatch.setattr(watchdog, "AT_MOST_EVERY_S", 0.0)
    try:
        second = acquire(
            InterruptibleStore(store, lambda: False), store, 2.0, HOLDER, none_is_known_gone, lambda: False
        )
    finally:
        watchdog.watched_by(None)
    second.end()
    lines = [each for each in map(json.loads, capsys.readouterr().out.splitlines()) if each["event"] == "waiting"]
    assert len(lines) >= 2
    assert f"Waiting for attempt {first.number} on here, which holds {store.uri}" in lines[0]["message"]
    assert "silent for 2 s more" in lines[0]["message"]
    assert beats == []


def test_contender_that_was_frozen_before_its_number_appeared_does_not_take_the_run(store: Store) -> None:
    store.put("attempts/1.json", Attempt(1, 60.0, HOLDER, why="finished").to_json())
    put, overtaken = store.put, False

    def put_late(key: str, *arguments: Any, **options: Any) -> Any:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            put("attempts/5.json", Attempt(5, 60.0, HOLDER, why="finished").to_json())
        return put(key, *arguments, **options)

    store.put = put_late  # type: ignore[method-assign]
    late = acquire_lease(store)
    late.check()
    assert late.number == 6
    assert store.stat("attempts/2.json") is None
    late.end()


def test_foreign_time_out_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LONGEST_LEASE_S", 0.5)
    store.put("attempts/1.json", Attempt(1, 1e300, HOLDER).to_json())
    second = acquire_lease(store)
    assert second.number == 2
    second.end()


def test_end_of_a_lost_lease_waits_for_its_own_renewal(tmp_path: Path) -> None:
    """Or else the process may end between the renewal's draft and its removal, and leave it in a finished run."""
    store = open_store(str(tmp_path))
    renewing, may_go_on, renewed = threading.Event(), threading.Event(), threading.Event()
    put = store.put

    def slow_put(*arguments: Any, **conditions: Any) -> Any:
        renewing.set()
        assert may_go_on.wait(20)
        try:
            return put(*arguments, **conditions)
        finally:
            renewed.set()

    held = acquire_lease(store, seconds=0.4)
    store.put = slow_put  # type: ignore[method-assign]
    assert renewing.wait(20)
    held._lost = True
    threading.Timer(0.2, may_go_on.set).start()
    held.end()
    assert renewed.is_set()
