"""Checkpoints uploaded in the background: order, retention, an unreliable store, and the end of a job."""

import hashlib
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import best_of, parse, steps_to_keep
from inat_job.checkpoints.training_state import Write
from inat_job.checkpoints.uploader import Uploader, next_to_upload, superseded, uploading
from inat_job.errors import ConflictError, JobError, NoPermissionError, Preempted, TransientError
from inat_job.signals import StopFlag
from inat_job.storage.lease import Lease, LeaseError
from inat_job.storage.run_folder import RunFolder
from tests.checkpoints.unreliable_store import (
    GRACE_S,
    SCORES,
    copies,
    manifest,
    manifests_of,
    store_of,
    stored_keys,
    stored_steps,
    wait_until,
)


@given(SCORES, st.sets(st.integers(0, 11), min_size=1))
def test_next_to_upload_is_the_best_or_else_the_newest(scores: list[float | None], waiting: set[int]) -> None:
    known = manifests_of(scores)
    best = best_of(known)
    step = next_to_upload(waiting, known)
    assert step in waiting
    assert step == max(waiting) if best is None or best.step not in waiting else step == best.step
    assert not superseded(waiting, known) & steps_to_keep(known)


def test_save_stores_file_then_manifest_then_pointer(
    folder: RunFolder, uploader: Uploader, checkpoints: CheckpointIndex
) -> None:
    uploader.save(manifest(6), copies(b"state"))
    uploader.update_manifest(manifest(6, 0.5))
    uploader.wait_until_written()
    assert checkpoints.best()[1].read_bytes() == b"state"
    uploader.finish(StopFlag())
    order = [key for key in store_of(folder).calls if "6." in key or "latest" in key]
    assert order[:3] == ["checkpoints/6.ckpt", "checkpoints/6.json", "checkpoints/latest.json"]
    assert order.count("checkpoints/6.ckpt") == 1
    assert "metrics.jsonl" in store_of(folder).calls
    fresh = CheckpointIndex(folder).discover()
    assert fresh.stored == checkpoints.stored
    assert (fresh.newest().val_accuracy, fresh.newest().validate) == (0.5, False)
    assert folder.read_json("checkpoints/latest.json")["step"] == 6


def test_queue_stays_bounded_while_the_store_is_away(
    folder: RunFolder, uploader: Uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    store_of(folder).error = TransientError("away")
    for step in range(1, 40):
        uploader.save(manifest(step), copies(b"state %d" % step))
        uploader.update_manifest(manifest(step, 0.9 if step == 5 else 0.1))
    wait_until(lambda: len(list(folder.local.glob("checkpoints/*.ckpt"))) <= 4)
    wait_until(lambda: uploader._last_error is not None)
    assert capsys.readouterr().out.count("is not stored yet: away") == 1
    store_of(folder).error = None
    uploader.finish(StopFlag())
    assert stored_steps(folder) == {5, 38, 39}
    assert folder.read_json("checkpoints/latest.json")["step"] == 39


@pytest.mark.parametrize("kind", [TransientError, NoPermissionError])
def test_store_outage_fails_only_finish(folder: RunFolder, uploader: Uploader, kind: type[JobError]) -> None:
    store_of(folder).error = kind("away")
    uploader.save(manifest(6), copies(b"x"))
    uploader.raise_if_failed()
    with pytest.raises(kind, match="away"):
        uploader.finish(StopFlag())
    assert (folder.local / "checkpoints/6.ckpt").exists()


def test_next_attempt_on_the_same_machine_uploads_what_was_left(
    folder: RunFolder, uploader: Uploader, lease: Lease
) -> None:
    store_of(folder).error = TransientError("away")
    uploader.save(manifest(6), copies(b"x"))
    with pytest.raises(TransientError):
        uploader.finish(StopFlag())
    uploader._fail(RuntimeError("the process is gone"))
    store_of(folder).error = None
    assert CheckpointIndex(folder).discover().load_newest_intact() is None
    again = CheckpointIndex(folder).discover(spooled=True)
    latest = again.load_newest_intact()
    assert latest
    assert latest[0].step == 6
    with uploading(again, lease, ["metrics.jsonl"], StopFlag(), GRACE_S, latest[0]) as second:
        second.finish(StopFlag())
    assert stored_keys(folder) == ["checkpoints/6.ckpt", "checkpoints/6.json", "checkpoints/latest.json"]


def test_training_begins_while_a_silent_store_delays_the_cleaning_of_earlier_checkpoints(
    folder: RunFolder, uploader: Uploader, lease: Lease
) -> None:
    uploader.save(manifest(1), copies(b"x"))
    uploader.finish(StopFlag())
    store = store_of(folder)
    store.calls.clear()
    store.gate.clear()
    index = CheckpointIndex(folder).discover()
    with uploading(index, lease, ["metrics.jsonl"], StopFlag(), GRACE_S, index.newest()) as second:
        assert store.calls == []
        store.gate.set()
        second.finish(StopFlag())
        assert store.calls == ["checkpoints/latest.json"]


def test_flush_uploads_the_newest_before_an_older_one(folder: RunFolder, uploader: Uploader) -> None:
    store_of(folder).gate.clear()
    uploader.save(manifest(1), copies(b"old"))
    wait_until(lambda: uploader._active is not None)
    uploader.save(manifest(2), copies(b"new"))
    threading.Timer(0.3, store_of(folder).gate.set).start()
    assert uploader.flush(20)
    stored = [key for key in store_of(folder).calls if key.endswith(".ckpt")]
    assert stored == ["checkpoints/2.ckpt", "checkpoints/1.ckpt"]
    assert folder.read_json("checkpoints/latest.json")["step"] == 2


def test_best_checkpoint_is_uploaded_before_newer_ones(folder: RunFolder, uploader: Uploader) -> None:
    """Otherwise a kill in between would lose the best checkpoint, and a resume would end with another."""
    store_of(folder).gate.clear()
    uploader.save(manifest(1), copies(b"first"))
    wait_until(lambda: uploader._active is not None)
    uploader.save(manifest(2), copies(b"best"))
    uploader.update_manifest(manifest(2, 0.9))
    uploader.save(manifest(3), copies(b"newest"))
    store_of(folder).gate.set()
    assert uploader.flush(20)
    stored = [key for key in store_of(folder).calls if key.endswith((".ckpt", "2.json"))]
    assert stored.index("checkpoints/2.json") < stored.index("checkpoints/3.ckpt")


def test_pointer_does_not_move_back_to_an_older_checkpoint(folder: RunFolder, uploader: Uploader, lease: Lease) -> None:
    uploader.save(manifest(9), copies(b"new"))
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


def test_flush_waits_for_the_deletion_of_what_is_superseded(
    folder: RunFolder, uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = folder.store.delete

    def delete_slowly(key: str) -> None:
        time.sleep(0.5)
        delete(key)

    monkeypatch.setattr(folder.store, "delete", delete_slowly)
    for step in range(1, 5):
        uploader.save(manifest(step), copies(b"x"))
        uploader.flush(20)
    assert stored_steps(folder) == {3, 4}


def test_flush_does_not_wait_long_for_a_deletion(
    folder: RunFolder, uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = threading.Event()
    monkeypatch.setattr(folder.store, "delete", lambda key: silent.wait(60))
    for step in range(1, 4):
        uploader.save(manifest(step), copies(b"x"))
    started = time.monotonic()
    assert uploader.flush(60)
    assert time.monotonic() - started < 30
    silent.set()


def test_flush_ends_when_its_time_is_up(folder: RunFolder, uploader: Uploader) -> None:
    store_of(folder).gate.clear()
    uploader.save(manifest(1), copies(b"x"))
    started = time.monotonic()
    assert not uploader.flush(0.3)
    assert time.monotonic() - started < 5
    store_of(folder).gate.set()


@pytest.mark.parametrize("stored", [True, False])
def test_threads_end_with_the_block(
    folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease, stored: bool
) -> None:
    before = {*threading.enumerate()}
    store_of(folder).error = None if stored else TransientError("no answer")
    with suppress(Preempted), uploading(checkpoints, lease, [], StopFlag(), 0.5, None) as uploader:
        started = {*threading.enumerate()} - before
        uploader.save(manifest(1), copies(b"x"))
        if stored:
            uploader.finish(StopFlag())
        else:
            raise Preempted("stopped by a test")
    assert {each.name for each in started} == {"checkpoint writer", "uploader"}
    for each in started:
        each.join(20)
    assert not any(each.is_alive() for each in started)


def test_stop_signal_during_finish_raises_preempted(
    folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease
) -> None:
    uploader = Uploader(checkpoints, lease, [], grace_s=0.5, protected=None)
    store_of(folder).gate.clear()
    uploader.save(manifest(1), copies(b"x"))
    stop = StopFlag()
    threading.Timer(0.2, lambda: stop.set("a test")).start()
    with pytest.raises(Preempted):
        uploader.finish(stop)
    store_of(folder).gate.set()


def test_incomplete_checkpoints_of_a_killed_attempt_are_replaced_or_deleted(
    folder: RunFolder, lease: Lease, checkpoints: CheckpointIndex
) -> None:
    for step in (6, 9):
        folder.store.put(f"checkpoints/{step}.ckpt", b"torn")
    folder.store.put("checkpoints/mine.ckpt", b"a person's")
    uploader = Uploader(checkpoints, lease, [], GRACE_S, protected=None)
    uploader.save(manifest(6), copies(b"whole"))
    uploader.finish(StopFlag())
    assert folder.store.read("checkpoints/6.ckpt") == b"whole"
    again = CheckpointIndex(folder).discover()
    assert again.orphans == {9}  # one without a manifest
    Uploader(again, lease, [], GRACE_S, protected=None).finish(StopFlag())
    assert "checkpoints/9.ckpt" not in stored_keys(folder)
    assert "checkpoints/mine.ckpt" in stored_keys(folder)


def test_retention_keeps_the_checkpoint_resumed_from(
    folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease
) -> None:
    uploader = Uploader(checkpoints, lease, [], GRACE_S, protected=3)
    for step in (3, 4, 5, 6):
        uploader.save(manifest(step), copies(b"x"))
        uploader.flush(20)
    uploader.finish(StopFlag())
    assert stored_steps(folder) == {3, 5, 6}


def test_lost_lease_ends_uploads_and_stores_nothing(folder: RunFolder, uploader: Uploader, lease: Lease) -> None:
    folder.store.put("attempts/2.json", b"{}")
    uploader.save(manifest(6), copies(b"x"))
    with pytest.raises(LeaseError, match="taken over"):
        uploader.finish(StopFlag())
    with pytest.raises(LeaseError):
        uploader.save(manifest(7), copies(b"x"))
    assert stored_keys(folder) == []


def test_damaged_local_file_is_given_up(
    folder: RunFolder, uploader: Uploader, capsys: pytest.CaptureFixture[str]
) -> None:
    store_of(folder).error = TransientError("away")
    uploader.save(manifest(6), copies(b"x"))
    uploader.wait_until_written()
    (folder.local / "checkpoints/6.ckpt").write_bytes(b"y")
    store_of(folder).error = None
    uploader.finish(StopFlag())
    assert "is given up" in capsys.readouterr().out
    assert stored_keys(folder) == []


def test_uploading_stores_the_queue_when_its_block_raises(
    folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease
) -> None:
    def work() -> None:
        with uploading(checkpoints, lease, [], StopFlag(), GRACE_S, None) as uploader:
            uploader.save(manifest(6), copies(b"x"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "checkpoints/6.json" in stored_keys(folder)


def full(path: Path) -> tuple[str, int]:
    raise ConflictError("No space left")


def test_full_disk_is_raised_in_training(uploader: Uploader) -> None:
    uploader.save(manifest(6), lambda: full)
    with pytest.raises(ConflictError, match="No space left"):
        uploader.wait_until_written()


def test_full_disk_loses_no_earlier_checkpoint(folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease) -> None:
    def work() -> None:
        with uploading(checkpoints, lease, [], StopFlag(), GRACE_S, None) as uploader:
            uploader.save(manifest(6), copies(b"x"))
            uploader.save(manifest(7), lambda: full)
            threading.Timer(0.3, store_of(folder).gate.set).start()
            uploader.wait_until_written()

    store_of(folder).gate.clear()
    with pytest.raises(ConflictError, match="No space left"):
        work()
    assert [each.step for each in CheckpointIndex(folder).discover().stored] == [6]
    assert [each.step for each in checkpoints.known] == [6]


def test_slow_store_never_makes_training_write(folder: RunFolder, uploader: Uploader) -> None:
    store_of(folder).gate.clear()
    writers: list[str] = []

    def write(path: Path) -> tuple[str, int]:
        writers.append(threading.current_thread().name)
        return copies(b"x")()(path)

    for step in (1, 2, 3):
        uploader.save(manifest(step), lambda: write)
    uploader.wait_until_written()
    assert uploader._active
    assert writers == ["checkpoint writer"] * 3
    assert store_of(folder).calls == []
    store_of(folder).gate.set()


def test_state_is_copied_only_once_the_one_before_is_written(uploader: Uploader) -> None:
    """There is memory for one copy."""
    order: list[str] = []

    def copy(step: int) -> Write:
        def write(path: Path) -> tuple[str, int]:
            time.sleep(0.1)
            order.append(f"{step} written")
            return copies(b"x")()(path)

        order.append(f"{step} copied")
        return write

    for step in (1, 2, 3):
        uploader.save(manifest(step), partial(copy, step))
    uploader.wait_until_written()
    assert order == ["1 copied", "1 written", "2 copied", "2 written", "3 copied", "3 written"]


def test_result_of_a_validation_does_not_wait_for_the_file(
    folder: RunFolder, uploader: Uploader, checkpoints: CheckpointIndex
) -> None:
    written = threading.Event()

    def write(path: Path) -> tuple[str, int]:
        written.wait(20)
        return copies(b"state")()(path)

    uploader.save(manifest(6), lambda: write)
    uploader.update_manifest(manifest(6, 0.5))
    written.set()
    uploader.finish(StopFlag())
    (stored,) = CheckpointIndex(folder).discover().stored
    assert (stored.val_accuracy, stored.sha256) == (0.5, hashlib.sha256(b"state").hexdigest())
    assert checkpoints.best()[1].read_bytes() == b"state"


def test_manifest_is_on_this_machine_before_it_is_in_the_store(
    folder: RunFolder, uploader: Uploader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next attempt here would take an older manifest for the newer one."""
    older: list[bool] = []
    put = store_of(folder).put

    def noting(key: str, source: Any, **options: Any) -> Any:
        if key == "checkpoints/6.json":
            here = parse((folder.local / key).read_bytes())
            older.append((here.val_accuracy or 0) < (parse(source).val_accuracy or 0))
        return put(key, source, **options)

    monkeypatch.setattr(store_of(folder), "put", noting)
    uploader.save(manifest(6), copies(b"x"))
    for accuracy in (0.1, 0.2, 0.3):
        uploader.update_manifest(manifest(6, accuracy))
        time.sleep(0.05)
    uploader.finish(StopFlag())
    assert older
    assert not any(older)


def test_missing_delete_permission_is_only_a_warning(
    folder: RunFolder, lease: Lease, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.store.put("checkpoints/6.ckpt", b"torn")
    checkpoints = CheckpointIndex(folder).discover()

    def forbidden(key: str) -> None:
        raise NoPermissionError("DeleteObject")

    monkeypatch.setattr(store_of(folder), "delete", forbidden)
    with uploading(checkpoints, lease, [], StopFlag(), GRACE_S, None) as made:
        for step in (6, 7, 8, 9):
            made.save(manifest(step), copies(b"x"))
            assert made.flush(20)  # or a later one would take its place, and none be left to delete
        made.finish(StopFlag())
    assert folder.store.read("checkpoints/6.ckpt") in (b"torn", b"x")
    assert "could not be deleted" in capsys.readouterr().out


def test_bug_in_the_upload_thread_is_raised_in_training(uploader: Uploader, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(uploader._store, "put_file", broken)
    uploader.save(manifest(6), copies(b"x"))
    wait_until(lambda: uploader._fatal is not None)
    with pytest.raises(ZeroDivisionError):
        uploader.raise_if_failed()


def test_next_attempt_finds_all_waiting_checkpoints(folder: RunFolder, uploader: Uploader) -> None:
    """Also the best one, although it was never its turn to be uploaded."""
    store_of(folder).error = TransientError("away")
    for step in (1, 2, 3, 4):
        uploader.save(manifest(step), copies(b"%d" % step))
        uploader.update_manifest(manifest(step, 0.9 if step == 1 else 0.1))
    wait_until(lambda: uploader._unwritten() is None)
    uploader._fail(RuntimeError("the process is gone"))
    again = CheckpointIndex(folder).discover(spooled=True)
    assert [each.step for each in again.known] == [1, 3, 4]
    assert again.best()[0].val_accuracy == 0.9
