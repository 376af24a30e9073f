"""Uploads checkpoints in the background: one thread that retries for as long as it takes and never ends training.

The best checkpoint goes first, since a resume from a newer one still needs it; then the newest. The queue is bounded by
retention: a checkpoint that newer ones make superfluous is dropped before it is sent.
"""

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from inat_job import events, signals, watchdog
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.checkpoint_store import CheckpointStore, DamagedError
from inat_job.checkpoints.manifest import Manifest, best_of, to_keep
from inat_job.checkpoints.training_state import Write
from inat_job.errors import JobError
from inat_job.events import Progress
from inat_job.job_status import STATUS
from inat_job.signals import StopFlag
from inat_job.storage import retry
from inat_job.storage.lease import Lease, LeaseError


@dataclass
class PendingCheckpoint:
    """A checkpoint on its way. `write` makes its file, where that was put off; `sent` says that the file is stored."""

    manifest: Manifest
    taken_at: float
    write: Write | None = None
    sent: bool = False


def next_step(waiting: Collection[int], known: Sequence[Manifest]) -> int:
    """The step that is stored first of those that wait: the best one's, and else the newest.

    Were a newer one stored before the best and the machine lost in between, the run would end with another best.
    """
    best = best_of(known)
    return best.step if best and best.step in waiting else max(waiting)


def superfluous(waiting: Collection[int], known: Sequence[Manifest]) -> set[int]:
    """The steps that retention would not keep, once they were stored."""
    return set(waiting) - to_keep(known)


_GRACE_SHARE = 0.7
"""Share of the grace that a checkpoint may take until it is stored before it is warned about."""

_TICK_S = 0.2


class _SupersededError(Exception):
    """A newer checkpoint is in a hurry."""


@contextmanager
def uploading(
    checkpoints: CheckpointIndex,
    lease: Lease,
    companions: Sequence[str],
    stop: StopFlag,
    grace_s: float,
    resumed: Manifest | None,
) -> Iterator["Uploader"]:
    """An uploader that, whatever ends the block, first stores what it has as far as the grace allows."""
    uploader = Uploader(checkpoints, lease, companions, grace_s, protected=resumed.step if resumed else None)
    try:
        yield uploader
    except BaseException:
        if not uploader.failed:
            uploader.hurry(stop.seconds_to_store(grace_s))
        raise


class Uploader:
    """Takes checkpoints from training and stores them; `protected` is the step of the one that was resumed from."""

    def __init__(
        self,
        checkpoints: CheckpointIndex,
        lease: Lease,
        companions: Sequence[str],
        grace_s: float,
        protected: int | None,
    ) -> None:
        self._checkpoints, self._lease, self._grace_s = checkpoints, lease, grace_s
        self._store = CheckpointStore(checkpoints, lease, companions, protected)
        self._changed = threading.Condition()
        self._jobs = {each.step: PendingCheckpoint(each, time.monotonic()) for each in checkpoints.waiting}
        self._active: PendingCheckpoint | None = None
        self._fatal: BaseException | None = None
        self._trouble: JobError | None = None
        self._hurried = self._closing = False
        self._store.sweep()
        threading.Thread(target=self._work, name="uploader", daemon=True).start()

    def save(self, manifest: Manifest, write: Write, deferred: bool) -> Manifest:
        """Take a checkpoint whose file `write` makes: now, or `deferred` by the thread. Raises ConflictError."""
        self.guard()
        job = PendingCheckpoint(manifest, time.monotonic(), write)
        if not deferred or self._active is not None:  # a thread that is busy would let it wait in memory
            self._make_file(job)
        self._take(job)
        return job.manifest

    def amend(self, manifest: Manifest) -> None:
        """Take a new manifest of a checkpoint that was taken before."""
        self.guard()
        with self._changed:
            known = {each.step: each for each in self._checkpoints.known}.get(manifest.step)
            if known is None:
                return  # its file was given up
            job = self._jobs.get(manifest.step) or PendingCheckpoint(known, time.monotonic(), sent=True)
            job.manifest = replace(manifest, sha256=known.sha256, size=known.size)
        self._take(job)

    def guard(self) -> None:
        """Raise what ended the thread, if anything did: a lost lease, a full disk, or a bug."""
        if self._fatal is not None:
            raise self._fatal
        self._lease.guard()

    @property
    def failed(self) -> bool:
        """Whether there is no use in waiting: the end was tried, or the thread is gone."""
        return self._fatal is not None or (self._closing and self._trouble is not None)

    def made(self) -> None:
        """Wait until every checkpoint has its file on this machine."""
        with self._changed:
            self._changed.wait_for(lambda: self._fatal is not None or not any(job.write for job in self._jobs.values()))
        self.guard()

    def hurry(self, seconds: float) -> bool:
        """Store what there is within `seconds`; whether all of it is stored."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._jobs or self._fatal is not None, seconds)
            return not self._jobs

    def finish(self, stop: StopFlag) -> None:
        """Store all there is. Raises the store's error when it stays away for all its retries, Preempted if stopped."""
        with self._changed:
            self._closing, self._trouble = True, None
            self._changed.notify_all()
            while (self._jobs or self._active) and not self.failed and not stop():
                watchdog.beat()  # as each request has a time-out
                self._changed.wait(_TICK_S)
        self.guard()
        if self._trouble is not None:
            raise self._trouble
        if self._jobs and not self.hurry(stop.seconds_to_store(self._grace_s)):
            signals.check(stop, "the last checkpoint was being stored")

    def _take(self, job: PendingCheckpoint) -> None:
        with self._changed:
            self._store.describe_here(job.manifest)
            self._jobs[job.manifest.step] = job
            self._checkpoints.wait(job.manifest)
            self._drop_superfluous()
            self._changed.notify_all()

    def _drop_superfluous(self) -> None:
        for step in superfluous(self._jobs, self._checkpoints.known):
            if self._jobs[step] is not self._active:
                job = self._jobs.pop(step)
                self._checkpoints.drop(step)
                if not job.sent:
                    self._store.delete_here(step)

    def _work(self) -> None:
        failures = 0
        while self._fatal is None:
            job = self._next(retry.wait_s(failures) if failures else 0.0)
            try:
                self._send(job)
                failures = 0
            except _SupersededError:
                continue
            except DamagedError as error:
                self._give_up(job, error)
            except JobError as error:
                if isinstance(error, LeaseError) or job.write:  # which is no trouble of the store's
                    self._end(error)
                failures += 1
                self._troubled(job, error, first=failures == 1)
            except BaseException as error:
                self._end(error)
            with self._changed:
                self._active = None
                self._changed.notify_all()

    def _next(self, pause_s: float) -> PendingCheckpoint:
        """What is to be stored next, after a pause that the end of the job cuts short."""
        begun = time.monotonic()
        with self._changed:
            while not self._jobs or time.monotonic() - begun < self._pause(pause_s):
                self._changed.wait(_TICK_S if self._jobs else None)
            self._active = self._next_job()
            return self._active

    def _next_job(self) -> PendingCheckpoint:
        return self._jobs[next_step(self._jobs, self._checkpoints.known)]

    def _pause(self, wanted_s: float) -> float:
        return min(wanted_s, _TICK_S) if self._hurried or self._closing else wanted_s

    def _send(self, job: PendingCheckpoint) -> None:
        if job.write:
            self._make_file(job)
        if not job.sent:
            self._store.put_file(job.manifest, self._give_way(job))
            job.sent = True
        manifest = job.manifest
        self._store.put_manifest(manifest)
        self._arrived(job, manifest)
        try:
            self._store.retire()
        except LeaseError:
            raise
        except JobError as error:
            events.warn(f"Checkpoints that are no longer needed could not be deleted: {error}")

    def _arrived(self, job: PendingCheckpoint, manifest: Manifest) -> None:
        took = time.monotonic() - job.taken_at
        self._checkpoints.arrived(manifest)
        self._lease.reached(manifest.step)
        STATUS.stored_step, STATUS.checkpoint = manifest.step, f"{self._checkpoints.folder.uri}/{manifest.name}"
        events.emit("checkpoint", step=manifest.step, seconds=round(took, 3), bytes=manifest.size)
        if took > _GRACE_SHARE * self._grace_s:
            events.warn(
                f"A checkpoint took {took:.1f} s to store, and --grace-seconds is {self._grace_s:g}: raise the grace."
            )
        with self._changed:
            if job.manifest == manifest:
                self._jobs.pop(manifest.step, None)
            job.taken_at = time.monotonic()
            self._changed.notify_all()

    def _make_file(self, job: PendingCheckpoint) -> None:
        assert job.write
        sha256, size = job.write(self._checkpoints.folder.path(job.manifest.name))
        with self._changed:
            job.manifest, job.write = replace(job.manifest, sha256=sha256, size=size), None
            if self._jobs.get(job.manifest.step) is job:  # it was put off
                self._checkpoints.wait(job.manifest)
                self._store.describe_here(job.manifest)
            self._changed.notify_all()

    def _give_way(self, job: PendingCheckpoint) -> Progress:
        def look(done: int, total: int) -> None:
            with self._changed:
                if self._hurried and done < total and job is not self._next_job():
                    raise _SupersededError

        return look

    def _troubled(self, job: PendingCheckpoint, error: JobError, first: bool) -> None:
        if first:
            events.warn(f"Checkpoint {job.manifest.step} is not stored yet: {error}")
        with self._changed:
            self._trouble = error
            self._changed.notify_all()

    def _give_up(self, job: PendingCheckpoint, error: Exception) -> None:
        events.warn(f"Checkpoint {job.manifest.step} is given up: {error}")
        with self._changed:
            self._jobs.pop(job.manifest.step, None)
            self._checkpoints.drop(job.manifest.step)
            self._changed.notify_all()

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self._fatal = error
            self._changed.notify_all()


class NullUploader:
    """Takes checkpoints as training/uploader.py does, and leaves them to rank 0, which takes the same."""

    def save(self, manifest: Manifest, write: Write, deferred: bool) -> Manifest:
        return manifest

    def amend(self, manifest: Manifest) -> None:
        pass

    def guard(self) -> None:
        pass

    def made(self) -> None:
        pass

    def hurry(self, seconds: float) -> bool:
        return True

    def finish(self, stop: StopFlag) -> None:
        pass
