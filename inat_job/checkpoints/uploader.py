"""Writes and uploads checkpoints in the background; training never waits for the store.

One thread writes each to this machine's disk. Another uploads them, and retries for as long as it takes.

The best checkpoint is uploaded first, since a resume from a newer one still needs it; then the newest. Retention
bounds the queue: a checkpoint that newer ones have superseded is dropped before it is uploaded.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from inat_job import events, signals, watchdog
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.checkpoint_store import CheckpointStore
from inat_job.checkpoints.manifest import FOLDER, Manifest, best_of, steps_to_keep
from inat_job.checkpoints.training_state import Write
from inat_job.errors import JobError
from inat_job.events import Progress
from inat_job.host.device_faults import is_device_lost
from inat_job.job_status import STATUS
from inat_job.signals import StopFlag
from inat_job.storage import DamagedFileError, retry
from inat_job.storage.lease import Lease, LeaseError

_GRACE_SHARE = 0.7
"""Share of the grace period that storing a checkpoint may take before a warning."""

_TICK_S, _DELETION_S = 0.2, 3.0


@dataclass
class PendingCheckpoint:
    """A checkpoint in the upload queue.

    `write` writes its file, and is None afterwards. `written` is the newest of its manifests on this machine's disk.
    `file_stored` is whether the file is in the store, so that only the manifest is left to upload.
    """

    manifest: Manifest
    taken_at: float
    write: Write | None = None
    written: Manifest | None = None
    file_stored: bool = False

    @property
    def on_disk(self) -> bool:
        """Whether its file and its newest manifest are written."""
        return self.write is None and self.written == self.manifest


def next_to_upload(waiting: Collection[int], known: Sequence[Manifest]) -> int:
    """The step to upload first: the best checkpoint's if it waits, or else the newest.

    If a newer one were stored before the best and the machine then lost, the run would end with another best.
    """
    best = best_of(known)
    return best.step if best and best.step in waiting else max(waiting)


def superseded(waiting: Collection[int], known: Sequence[Manifest]) -> set[int]:
    """The waiting steps that retention would delete as soon as they were stored."""
    return set(waiting) - steps_to_keep(known)


class _OvertakenError(Exception):
    """Ends an upload during a flush, because another checkpoint now comes first."""


@contextmanager
def uploading(
    checkpoints: CheckpointIndex,
    lease: Lease,
    companions: Sequence[str],
    stop: StopFlag,
    grace_s: float,
    resumed: Manifest | None,
) -> Iterator["Uploader"]:
    """An uploader for the block. However the block ends, what was taken is stored first, as far as the grace allows.

    After the loss of the device, that is what is on disk by then.
    """
    uploader = Uploader(checkpoints, lease, companions, grace_s, protected=resumed.step if resumed else None)
    try:
        yield uploader
    except BaseException as error:
        if is_device_lost(error):
            uploader.stop_writing(error)
        if not uploader.failed:
            uploader.flush(stop.seconds_to_store(grace_s))
        raise
    finally:
        uploader.end()


class Uploader:
    """Takes checkpoints from training and stores them; `protected` is the step of the checkpoint resumed from."""

    def __init__(
        self,
        checkpoints: CheckpointIndex,
        lease: Lease,
        companions: Sequence[str],
        grace_s: float,
        protected: int | None,
    ) -> None:
        self._checkpoints, self._lease, self._grace_s = checkpoints, lease, grace_s
        self._store = CheckpointStore(checkpoints, companions, protected)
        self._changed = threading.Condition()
        self._queue = {
            each.step: PendingCheckpoint(each, time.monotonic(), written=each) for each in checkpoints.waiting
        }
        self._active: PendingCheckpoint | None = None
        self._fatal: BaseException | None = None
        self._write_error: BaseException | None = None
        self._last_error: JobError | None = None
        self._flushing = self._closing = self._ended = False
        self._cleaning = True
        threading.Thread(target=self._write_all, name="checkpoint writer", daemon=True).start()
        threading.Thread(target=self._upload_all, name="uploader", daemon=True).start()

    def save(self, manifest: Manifest, copy: Callable[[], Write]) -> None:
        """Queue a checkpoint: `copy` copies its state now, and returns what writes its file in another thread.

        Waits first until the file of the checkpoint before is written, since there is memory for one copy. Raises what
        that write or the upload thread failed with.
        """
        self.wait_until_written()
        self._enqueue(PendingCheckpoint(manifest, time.monotonic(), copy()))

    def update_manifest(self, manifest: Manifest) -> None:
        """Queue a new manifest of a checkpoint saved before."""
        self.raise_if_failed()
        with self._changed:
            known = {each.step: each for each in self._checkpoints.known}.get(manifest.step)
            if known is None:
                return  # its file was damaged and given up
            pending = self._queue.get(manifest.step) or PendingCheckpoint(known, time.monotonic(), file_stored=True)
            pending.manifest = replace(manifest, sha256=known.sha256, size=known.size)
        self._enqueue(pending)

    def raise_if_failed(self) -> None:
        """Raise what ended one of the threads, if anything did: a lost lease, a full disk, or a bug."""
        if error := self._fatal or self._write_error:
            raise error
        self._lease.raise_if_lost()

    @property
    def failed(self) -> bool:
        """Whether waiting is useless: `finish` has failed, or the upload thread has ended."""
        return self._fatal is not None or (self._closing and self._last_error is not None)

    def wait_until_written(self) -> None:
        """Wait until the file of every checkpoint is on this machine's disk."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._fatal is not None or not any(pending.write for pending in self._queue.values())
            )
        self.raise_if_failed()

    def stop_writing(self, error: BaseException) -> None:
        """Give up the checkpoint that `error` keeps from being written; files on this disk are still stored."""
        with self._changed:
            self._write_error = error
            for pending in list(self._queue.values()):
                pending.written = pending.manifest
                if pending.write:
                    self._drop(pending)
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Store the queue within `seconds`; returns whether all of it is stored.

        Then what that supersedes is deleted, which may take a little of the time that is left.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue or self._fatal is not None, seconds)
            left = min(_DELETION_S, until - time.monotonic())
            self._changed.wait_for(lambda: not self._active or self._fatal is not None, max(0.0, left))
            return not self._queue

    def finish(self, stop: StopFlag) -> None:
        """Store the queue, however long it takes.

        Raises the store's error if it lasts through all retries, and Preempted if stopped.
        """
        with self._changed:
            self._closing, self._last_error = True, None
            self._changed.notify_all()
            while (self._queue or self._active or self._cleaning) and not self.failed and not stop():
                watchdog.beat()  # every request has a time-out, so this thread's waiting is no hang
                self._changed.wait(_TICK_S)
        self.raise_if_failed()
        if self._last_error is not None:
            raise self._last_error
        if self._queue and not self.flush(stop.seconds_to_store(self._grace_s)):
            signals.check(stop, "the last checkpoint was being stored")

    def end(self) -> None:
        """Let both threads end after the file and the request that they are at."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _enqueue(self, pending: PendingCheckpoint) -> None:
        with self._changed:
            self._queue[pending.manifest.step] = pending
            self._checkpoints.mark_waiting(pending.manifest)
            self._changed.notify_all()

    def _write_all(self) -> None:
        while self._write_error is None:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._unwritten())
                pending = self._unwritten()
            if self._ended or pending is None:
                return
            try:
                self._write(pending)
            except BaseException as error:  # of any kind: training raises it
                self.stop_writing(error)

    def _unwritten(self) -> PendingCheckpoint | None:
        return next((each for each in self._queue.values() if not each.on_disk), None)

    def _write(self, pending: PendingCheckpoint) -> None:
        """Write the file unless it exists, and then its newest manifest; drop what that supersedes."""
        if pending.write:
            with self._checkpoints.folder.drafts(FOLDER) as drafts:
                sha256, size = pending.write(drafts / Path(pending.manifest.name).name)
            with self._changed:
                pending.manifest, pending.write = replace(pending.manifest, sha256=sha256, size=size), None
                self._checkpoints.mark_waiting(pending.manifest)
                self._changed.notify_all()
        manifest = pending.manifest
        self._store.write_local_manifest(manifest)
        with self._changed:
            pending.written = manifest
            dropped = [self._queue[step] for step in superseded(self._queue, self._checkpoints.known)]
            dropped = [each for each in dropped if each is not self._active]
            for each in dropped:
                self._drop(each)
            self._changed.notify_all()
        for each in dropped:
            if not each.file_stored:
                self._store.delete_local(each.manifest.step)

    def _upload_all(self) -> None:
        failures = 0
        try:
            self._store.finish_earlier()
        except BaseException as error:
            self._fail(error)
        with self._changed:
            self._cleaning = False
            self._changed.notify_all()
        while self._fatal is None:
            pending = self._wait_for_next(retry.backoff_s(failures) if failures else 0.0)
            if pending is None:
                return
            try:
                self._upload(pending)
                failures = 0
            except _OvertakenError:
                continue
            except DamagedFileError as error:
                self._give_up(pending, error)
            except LeaseError as error:  # not the store's trouble, so no retry helps
                self._fail(error)
            except JobError as error:
                failures += 1
                self._note_error(pending, error, first=failures == 1)
            except BaseException as error:
                self._fail(error)
            with self._changed:
                self._active = None
                self._changed.notify_all()

    def _wait_for_next(self, pause_s: float) -> PendingCheckpoint | None:
        """The next checkpoint to upload, after a pause that the end of the job cuts short; None at the end."""
        started = time.monotonic()
        with self._changed:
            while not self._ended:
                found = self._next()
                if found and found.on_disk and time.monotonic() - started >= self._pause_s(pause_s):
                    self._active = found
                    return found
                self._changed.wait(_TICK_S if found else None)
            return None

    def _next(self) -> PendingCheckpoint | None:
        """The checkpoint to upload first of those whose file is written."""
        written = [step for step, each in self._queue.items() if not each.write]
        return self._queue[next_to_upload(written, self._checkpoints.known)] if written else None

    def _pause_s(self, wanted_s: float) -> float:
        return min(wanted_s, _TICK_S) if self._flushing or self._closing else wanted_s

    def _upload(self, pending: PendingCheckpoint) -> None:
        if not pending.file_stored:
            self._store.put_file(pending.manifest, self._interrupt_for_better(pending))
            pending.file_stored = True
        manifest = pending.written  # a newer one is on this machine's disk before it is in the store
        assert manifest
        self._store.put_manifest(manifest)
        self._mark_stored(pending, manifest)
        try:
            self._store.apply_retention()
        except LeaseError:
            raise
        except JobError as error:
            events.warn(f"Checkpoints that are no longer needed could not be deleted: {error}")

    def _mark_stored(self, pending: PendingCheckpoint, manifest: Manifest) -> None:
        seconds = time.monotonic() - pending.taken_at
        self._checkpoints.mark_stored(manifest)
        self._lease.reached(manifest.step)
        STATUS.stored_step, STATUS.checkpoint = manifest.step, f"{self._checkpoints.folder.uri}/{manifest.name}"
        events.emit("checkpoint", step=manifest.step, seconds=round(seconds, 3), bytes=manifest.size)
        if seconds > _GRACE_SHARE * self._grace_s:
            events.warn(
                f"A checkpoint took {seconds:.1f} s to store, and --grace-seconds is {self._grace_s:g}: raise the "
                "grace."
            )
        with self._changed:
            if pending.manifest == manifest:
                self._queue.pop(manifest.step, None)
            pending.taken_at = time.monotonic()
            self._changed.notify_all()

    def _interrupt_for_better(self, pending: PendingCheckpoint) -> Progress:
        """A progress callback that ends the upload when a flush needs another checkpoint first."""

        def check(done: int, total: int) -> None:
            with self._changed:
                if self._flushing and done < total and pending is not self._next():
                    raise _OvertakenError

        return check

    def _note_error(self, pending: PendingCheckpoint, error: JobError, first: bool) -> None:
        if first:
            events.warn(f"Checkpoint {pending.manifest.step} is not stored yet: {error}")
        with self._changed:
            self._last_error = error
            self._changed.notify_all()

    def _give_up(self, pending: PendingCheckpoint, error: Exception) -> None:
        events.warn(f"Checkpoint {pending.manifest.step} is given up: {error}")
        with self._changed:
            self._drop(pending)
            self._changed.notify_all()

    def _drop(self, pending: PendingCheckpoint) -> None:
        self._queue.pop(pending.manifest.step, None)
        self._checkpoints.discard_waiting(pending.manifest.step)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._fatal = error
            self._changed.notify_all()


class NullUploader:
    """The uploader of every rank but rank 0: it does nothing, since rank 0 stores the same checkpoints."""

    def save(self, manifest: Manifest, copy: Callable[[], Write]) -> None:
        """Does nothing."""

    def update_manifest(self, manifest: Manifest) -> None:
        """Does nothing."""

    def raise_if_failed(self) -> None:
        """Does nothing."""

    def wait_until_written(self) -> None:
        """Does nothing."""

    def flush(self, seconds: float) -> bool:
        """Has nothing to store."""
        return True

    def finish(self, stop: StopFlag) -> None:
        """Does nothing."""
