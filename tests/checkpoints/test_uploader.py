"""CheckpointIndex stored in the background: order, retention, trouble with the store, and the end of a job."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest
from inat_job.checkpoints.uploader import Uploader, uploading
from inat_job.errors import ConflictError, JobError, NoPermissionError, Preempted, TransientError
from inat_job.signals import StopFlag
from inat_job.storage import StorageOptions, Store, retry
from inat_job.storage.lease import Lease, LeaseError, acquire
from inat_job.storage.run_folder import RunFolder, open_run_folder

GRACE_S = 30.0


class Moody:
    """A store in front of another, that is away or slow on demand; `done` tells what was put and deleted."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.uri = store.uri
        self.away: JobError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, source: Any, **options: Any) -> Any:
        self.gate.wait(20)
        if options.get("progress"):
            options.pop("progress")(0, 1)
        if self.away:
            raise self.away
        self.done.append(key)
        return self._store.put(key, source, **options)

    def delete(self, key: str) -> None:
        self.done.append(f"-{key}")
        self._store.delete(key)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def folder(tmp_path: Path, s3_bucket: str) -> RunFolder:
    made = open_run_folder(f"s3://{s3_bucket}", "r", StorageOptions(), tmp_path / "spool")
    made.background = Moody(made.background)  # type: ignore[assignment]
    made.write("metrics.jsonl", '{"step": 1}\n')
    return made


@pytest.fixture
def lease(folder: RunFolder) -> Iterator[Lease]:
    moody = folder.background
    held = acquire(folder.store, moody._store, 60, {}, lambda holder: False, lambda: False)  # type: ignore[attr-defined]
    yield held
    held.end()


@pytest.fixture
def checkpoints(folder: RunFolder) -> CheckpointIndex:
    return CheckpointIndex(folder).discover(spooled=True)


@pytest.fixture
def uploader(checkpoints: CheckpointIndex, lease: Lease) -> Iterator[Uploader]:
    made = Uploader(checkpoints, lease, ["metrics.jsonl"], GRACE_S, protected=None)
    yield made
    made._end(RuntimeError("the test is over"))


def moody(folder: RunFolder) -> Moody:
    assert isinstance(folder.background, Moody)
    return folder.background


def manifest(step: int, accuracy: float | None = None, **others: Any) -> Manifest:
    loss = None if accuracy is None else 1.0
    accuracies = [] if accuracy is None else [accuracy]
    return Manifest(step, 1, accuracy, loss, accuracies, accuracy is None, "", "d", "s", 1.0, None, **others)


def written(data: bytes) -> Callable[[Path], tuple[str, int]]:
    def write(path: Path) -> tuple[str, int]:
        path.write_bytes(data)
        return hashlib.sha256(data).hexdigest(), len(data)

    return write


def keys(folder: RunFolder) -> list[str]:
    return [entry.key for entry in folder.store.list("checkpoints/")]


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_checkpoint_exists_when_its_manifest_does(
    folder: RunFolder, uploader: Uploader, checkpoints: CheckpointIndex, deferred: bool
) -> None:
    uploader.save(manifest(6), written(b"state"), deferred)
    uploader.update_manifest(manifest(6, 0.5))
    uploader.wait_until_written()
    assert checkpoints.best()[1].read_bytes() == b"state"
    uploader.finish(StopFlag())
    order = [key for key in moody(folder).done if "6." in key or "latest" in key]
    assert order[:3] == ["checkpoints/6.ckpt", "checkpoints/6.json", "checkpoints/latest.json"]
    assert order.count("checkpoints/6.ckpt") == 1
    assert "metrics.jsonl" in moody(folder).done
    fresh = CheckpointIndex(folder).discover()
    assert fresh.stored == checkpoints.stored
    assert (fresh.newest().val_accuracy, fresh.newest().validate) == (0.5, False)
    assert folder.read_json("checkpoints/latest.json")["step"] == 6


def test_training_goes_on_while_the_store_is_away_and_what_waits_is_bounded(
    folder: RunFolder, uploader: Uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    moody(folder).away = TransientError("away")
    for step in range(1, 40):
        uploader.save(manifest(step), written(b"state %d" % step), deferred=False)
        uploader.update_manifest(manifest(step, 0.9 if step == 5 else 0.1))
    assert len(list(folder.local.glob("checkpoints/*.ckpt"))) <= 4
    wait_until(lambda: uploader._trouble is not None)
    assert capsys.readouterr().out.count("is not stored yet: away") == 1
    moody(folder).away = None
    uploader.finish(StopFlag())
    assert {key for key in keys(folder) if key.endswith(".ckpt")} == {
        f"checkpoints/{step}.ckpt" for step in (5, 38, 39)
    }
    assert folder.read_json("checkpoints/latest.json")["step"] == 39


@pytest.mark.parametrize("kind", [TransientError, NoPermissionError])
def test_only_the_end_fails_when_the_store_stays_away(
    folder: RunFolder, uploader: Uploader, kind: type[JobError]
) -> None:
    moody(folder).away = kind("away")
    uploader.save(manifest(6), written(b"x"), deferred=False)
    uploader.raise_if_failed()
    with pytest.raises(kind, match="away"):
        uploader.finish(StopFlag())
    assert (folder.local / "checkpoints/6.ckpt").exists()


def test_what_never_reached_the_store_is_stored_by_the_next_attempt_on_this_machine(
    folder: RunFolder, uploader: Uploader, lease: Lease
) -> None:
    moody(folder).away = TransientError("away")
    uploader.save(manifest(6), written(b"x"), deferred=False)
    with pytest.raises(TransientError):
        uploader.finish(StopFlag())
    uploader._end(RuntimeError("the process is gone"))
    moody(folder).away = None
    assert CheckpointIndex(folder).discover().latest() is None
    again = CheckpointIndex(folder).discover(spooled=True)
    latest = again.latest()
    assert latest
    assert latest[0].step == 6
    with uploading(again, lease, ["metrics.jsonl"], StopFlag(), GRACE_S, latest[0]) as second:
        second.finish(StopFlag())
    assert keys(folder) == ["checkpoints/6.ckpt", "checkpoints/6.json", "checkpoints/latest.json"]


def test_a_hurried_end_stores_the_newest_first_and_leaves_an_older_one(folder: RunFolder, uploader: Uploader) -> None:
    moody(folder).gate.clear()
    uploader.save(manifest(1), written(b"old"), deferred=False)
    wait_until(lambda: uploader._active is not None)
    uploader.save(manifest(2), written(b"new"), deferred=False)
    threading.Timer(0.3, moody(folder).gate.set).start()
    assert uploader.flush(20)
    stored = [key for key in moody(folder).done if key.endswith(".ckpt")]
    assert stored == ["checkpoints/2.ckpt", "checkpoints/1.ckpt"]
    assert folder.read_json("checkpoints/latest.json")["step"] == 2


def test_nothing_is_stored_before_the_best(folder: RunFolder, uploader: Uploader) -> None:
    """Else a kill in between would cost the run its best checkpoint, and a resume would end with another."""
    moody(folder).gate.clear()
    uploader.save(manifest(1), written(b"first"), deferred=False)
    wait_until(lambda: uploader._active is not None)
    uploader.save(manifest(2), written(b"best"), deferred=False)
    uploader.update_manifest(manifest(2, 0.9))
    uploader.save(manifest(3), written(b"newest"), deferred=False)
    moody(folder).gate.set()
    assert uploader.flush(20)
    stored = [key for key in moody(folder).done if key.endswith((".ckpt", "2.json"))]
    assert stored.index("checkpoints/2.json") < stored.index("checkpoints/3.ckpt")


def test_the_pointer_does_not_go_back_for_one_that_arrives_late(
    folder: RunFolder, uploader: Uploader, lease: Lease
) -> None:
    uploader.save(manifest(9), written(b"new"), deferred=False)
    uploader.finish(StopFlag())
    late = manifest(6, sha256=hashlib.sha256(b"old").hexdigest(), size=3)
    folder.write(late.name, b"old")
    folder.write_json(late.manifest_name, vars(late))
    again = CheckpointIndex(folder).discover(spooled=True)
    assert [each.step for each in again.waiting] == [6]
    with uploading(again, lease, [], StopFlag(), GRACE_S, None) as second:
        second.finish(StopFlag())
    assert [each.step for each in again.stored] == [6, 9]
    assert folder.read_json("checkpoints/latest.json")["step"] == 9


def test_a_hurry_is_over_with_the_time_that_there_is(folder: RunFolder, uploader: Uploader) -> None:
    moody(folder).gate.clear()
    uploader.save(manifest(1), written(b"x"), deferred=False)
    begun = time.monotonic()
    assert not uploader.flush(0.3)
    assert time.monotonic() - begun < 5
    moody(folder).gate.set()


def test_a_stop_while_the_end_is_stored_is_a_preemption(
    folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease
) -> None:
    uploader = Uploader(checkpoints, lease, [], grace_s=0.5, protected=None)
    moody(folder).gate.clear()
    uploader.save(manifest(1), written(b"x"), deferred=False)
    stop = StopFlag()
    threading.Timer(0.2, lambda: stop.set("a test")).start()
    with pytest.raises(Preempted):
        uploader.finish(stop)
    moody(folder).gate.set()


def test_what_another_attempt_left_half_done_is_replaced_and_swept(
    folder: RunFolder, lease: Lease, checkpoints: CheckpointIndex
) -> None:
    for step in (6, 9):
        folder.store.put(f"checkpoints/{step}.ckpt", b"torn")
    folder.store.put("checkpoints/mine.ckpt", b"a person's")
    uploader = Uploader(checkpoints, lease, [], GRACE_S, protected=None)
    uploader.save(manifest(6), written(b"whole"), deferred=False)
    uploader.finish(StopFlag())
    assert folder.store.read("checkpoints/6.ckpt") == b"whole"
    again = CheckpointIndex(folder).discover()
    assert again.orphans == {9}  # one without a manifest
    Uploader(again, lease, [], GRACE_S, protected=None)
    assert "checkpoints/9.ckpt" not in keys(folder)
    assert "checkpoints/mine.ckpt" in keys(folder)


def test_the_checkpoint_resumed_from_stays(folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease) -> None:
    uploader = Uploader(checkpoints, lease, [], GRACE_S, protected=3)
    for step in (3, 4, 5, 6):
        uploader.save(manifest(step), written(b"x"), deferred=False)
        uploader.flush(20)
    uploader.finish(StopFlag())
    assert {key for key in keys(folder) if key.endswith(".ckpt")} == {f"checkpoints/{step}.ckpt" for step in (3, 5, 6)}


def test_a_lost_lease_ends_it_and_moves_nothing(folder: RunFolder, uploader: Uploader, lease: Lease) -> None:
    folder.store.put("attempts/2.json", b"{}")
    uploader.save(manifest(6), written(b"x"), deferred=False)
    with pytest.raises(LeaseError, match="taken over"):
        uploader.finish(StopFlag())
    with pytest.raises(LeaseError):
        uploader.save(manifest(7), written(b"x"), deferred=False)
    assert keys(folder) == []


def test_a_file_that_its_disk_damaged_is_given_up(
    folder: RunFolder, uploader: Uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    moody(folder).away = TransientError("away")
    uploader.save(manifest(6), written(b"x"), deferred=False)
    (folder.local / "checkpoints/6.ckpt").write_bytes(b"y")
    moody(folder).away = None
    uploader.finish(StopFlag())
    assert "is given up" in capsys.readouterr().out
    assert keys(folder) == []


def test_whatever_ends_the_block_what_was_taken_is_stored(
    folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease
) -> None:
    def work() -> None:
        with uploading(checkpoints, lease, [], StopFlag(), GRACE_S, None) as uploader:
            uploader.save(manifest(6), written(b"x"), deferred=False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "checkpoints/6.json" in keys(folder)


def test_a_disk_that_is_full_for_the_thread_ends_training(uploader: Uploader) -> None:
    def full(path: Path) -> tuple[str, int]:
        raise ConflictError("No space left")

    uploader.save(manifest(6), full, deferred=True)
    with pytest.raises(ConflictError, match="No space left"):
        uploader.wait_until_written()


def test_a_role_that_may_not_delete_can_resume(
    folder: RunFolder, lease: Lease, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.store.put("checkpoints/6.ckpt", b"torn")
    checkpoints = CheckpointIndex(folder).discover()

    def forbidden(key: str) -> None:
        raise NoPermissionError("DeleteObject")

    monkeypatch.setattr(moody(folder), "delete", forbidden)
    with uploading(checkpoints, lease, [], StopFlag(), GRACE_S, None) as made:
        for step in (6, 7, 8, 9):
            made.save(manifest(step), written(b"x"), deferred=False)
        made.finish(StopFlag())
    assert folder.store.read("checkpoints/6.ckpt") in (b"torn", b"x")
    assert "could not be deleted" in capsys.readouterr().out


def test_a_bug_in_the_thread_is_raised_in_training(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(uploader._store, "put_file", broken)
    uploader.save(manifest(6), written(b"x"), deferred=False)
    wait_until(lambda: uploader._fatal is not None)
    with pytest.raises(ZeroDivisionError):
        uploader.raise_if_failed()


def test_everything_that_waits_is_found_by_the_next_attempt_here(folder: RunFolder, uploader: Uploader) -> None:
    """The best one, too, though it was never its turn."""
    moody(folder).away = TransientError("away")
    for step in (1, 2, 3, 4):
        uploader.save(manifest(step), written(b"%d" % step), deferred=False)
        uploader.update_manifest(manifest(step, 0.9 if step == 1 else 0.1))
    uploader._end(RuntimeError("the process is gone"))
    again = CheckpointIndex(folder).discover(spooled=True)
    assert [each.step for each in again.known] == [1, 3, 4]
    assert again.best()[0].val_accuracy == 0.9
