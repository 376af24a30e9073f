"""Puts one checkpoint into a run's folder so that it is believed only when it is whole, and takes away old ones."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from inat_job import events
from inat_job.checkpoints import manifest as manifests
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import FOLDER, POINTER, Manifest, steps_to_keep
from inat_job.errors import JobError, PreconditionFailed
from inat_job.events import Progress
from inat_job.storage.disk import disk_errors, sha256_of
from inat_job.storage.lease import Lease


class DamagedError(Exception):
    """A checkpoint's file on this machine is no longer what was written."""


class CheckpointStore:
    """The `checkpoints/` of a run that `lease` holds. `companions` are files of the run that go with each checkpoint;
    the checkpoint of the step `protected` is never taken away."""

    def __init__(
        self, checkpoints: CheckpointIndex, lease: Lease, companions: Sequence[str], protected: int | None
    ) -> None:
        self._checkpoints, self._lease = checkpoints, lease
        self._folder, self._store = checkpoints.folder, checkpoints.folder.background
        self._companions, self._protected = companions, protected
        self._pointer = checkpoints.pointer
        self._pointed: int | None = None  # what an earlier attempt pointed to may be damaged

    def put_file(self, manifest: Manifest, progress: Progress) -> None:
        """Make the file durable here, and store it. Raises DamagedError, LeaseError and what the store raises."""
        path = self._folder.path(manifest.name)
        with disk_errors(path, missing=f"{path} is gone: check that nothing removes it while the job runs."):
            _sync(path)
            if sha256_of(path) != manifest.sha256:
                raise DamagedError(f"{path} is not what was written: check the disk.")
        if self._folder.remote:
            self._put_new(manifest.name, path, progress)

    def write_local_manifest(self, manifest: Manifest) -> None:
        """Keep the manifest beside its file: where the store stays away, the next attempt on this machine finds both.

        Where this machine is the store, the manifest comes last, when the file is durable.
        """
        if self._folder.remote and manifest.sha256:
            self._folder.write(manifest.manifest_name, manifests.to_json(manifest))

    def put_manifest(self, manifest: Manifest) -> None:
        """Store the manifest of a file that is stored: from now on the checkpoint exists. Then move the pointer."""
        self._lease.check()
        if not self._folder.remote:
            self._folder.write(manifest.manifest_name, manifests.to_json(manifest))
        else:
            for path in filter(Path.exists, map(self._folder.path, self._companions)):
                self._store.put(path.name, path.read_bytes())  # it may grow meanwhile
            self._store.put(manifest.manifest_name, manifests.to_json(manifest).encode())
        newest = max([manifest, *self._checkpoints.stored], key=lambda each: each.step)
        if newest.step != self._pointed:  # an older one may arrive later, from an attempt that could not store it
            self._move_pointer(newest)
            self._pointed = newest.step

    def apply_retention(self) -> None:
        """Delete what retention lets go of."""
        stored = self._checkpoints.stored
        keep = {*steps_to_keep(stored), self._protected}
        for manifest in [each for each in stored if each.step not in keep]:
            self._delete(manifest.step)
            self._checkpoints.remove(manifest.step)

    def delete_orphans(self) -> None:
        """Delete what killed attempts left half done, before anything is written that may have its names."""
        for draft in (self._folder.local / FOLDER).glob("*.tmp"):
            draft.unlink(missing_ok=True)
        try:
            for step in self._checkpoints.orphans:
                self._delete(step)
        except JobError as error:  # it would be overwritten anyway
            events.warn(f"What a killed attempt left could not be deleted: {error}")
        self._checkpoints.orphans.clear()

    def delete_local(self, step: int) -> None:
        """Delete this machine's copy; the manifest goes first, so that none dangles."""
        for suffix in ("json", "ckpt"):
            (self._folder.local / f"{FOLDER}/{step}.{suffix}").unlink(missing_ok=True)

    def _delete(self, step: int) -> None:
        for suffix in ("json", "ckpt"):
            self._store.delete(f"{FOLDER}/{step}.{suffix}")
        self.delete_local(step)

    def _put_new(self, name: str, path: Path, progress: Progress) -> None:
        """Store a file that nobody else may be storing. An attempt that was killed may have left one of this step."""
        self._lease.check()
        try:
            self._store.put(name, path, if_none_match=self._lease.conditional, progress=progress)
        except PreconditionFailed:
            self._lease.check()
            self._store.put(name, path, progress=progress)

    def _move_pointer(self, manifest: Manifest) -> None:
        facts = {"step": manifest.step, "manifest": manifest.manifest_name, "sha256": manifest.sha256}
        text = json.dumps(facts).encode()
        if not self._lease.conditional:
            self._pointer = self._store.put(POINTER, text)
            return
        try:
            if self._pointer is None:
                self._pointer = self._store.put(POINTER, text, if_none_match=True)
            else:
                self._pointer = self._store.put(POINTER, text, if_match=self._pointer.version)
        except PreconditionFailed:
            # A store without If-Match says so always, and any store when somebody else moved the pointer.
            self._lease.check()
            self._pointer = self._store.put(POINTER, text)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
