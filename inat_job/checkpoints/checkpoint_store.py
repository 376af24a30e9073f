"""Writes one checkpoint to a run's store so that it exists only once it is complete, and deletes old ones.

The order makes it safe: the file, then its manifest, then the pointer `latest.json`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from inat_job import events
from inat_job.checkpoints import manifest as manifests
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import FOLDER, POINTER, Manifest, steps_to_keep
from inat_job.errors import JobError
from inat_job.events import Progress
from inat_job.storage import DamagedFileError
from inat_job.storage.disk import disk_errors
from inat_job.storage.lease import LeaseError


class CheckpointStore:
    """The `checkpoints/` of a run whose folder is fenced by its lease: each write may raise LeaseError.

    `companions` are files of the run that are stored with each checkpoint; `protected` is the step of a checkpoint
    that retention never deletes.
    """

    def __init__(self, checkpoints: CheckpointIndex, companions: Sequence[str], protected: int | None) -> None:
        self._checkpoints = checkpoints
        self._folder, self._store = checkpoints.folder, checkpoints.folder.background
        self._companions, self._protected = companions, protected
        self._pointer_step: int | None = None  # unknown: the checkpoint an earlier attempt pointed to may be damaged

    def put_file(self, manifest: Manifest, progress: Progress) -> None:
        """Make the file durable on this machine, and store it; the store hashes it while it sends it.

        Where this machine is the store, the hash made while writing stands: a read now would come from memory, not
        from the disk. Raises DamagedFileError, LeaseError and what the store raises.
        """
        path = self._folder.path(manifest.name)
        with disk_errors(path, missing=f"{path} is gone: check that nothing removes it while the job runs."):
            size = _sync(path)
        if size != manifest.size:
            raise DamagedFileError(path)
        if self._folder.remote:
            self._store.put(manifest.name, path, sha256=manifest.sha256, progress=progress)

    def write_local_manifest(self, manifest: Manifest) -> None:
        """Write the manifest beside its local file, so that the next attempt on this machine finds both if the store
        stays away.

        Does nothing if this machine is the store: there the manifest is written last, once the file is durable.
        """
        if self._folder.remote and manifest.sha256:
            self._folder.write(manifest.manifest_name, manifests.to_json(manifest))

    def put_manifest(self, manifest: Manifest) -> None:
        """Store the manifest of a stored file, which makes the checkpoint exist, and then move the pointer.

        Raises LeaseError and what the store raises.
        """
        if self._folder.remote:
            for path in filter(Path.exists, map(self._folder.path, self._companions)):
                self._store.put(path.name, path.read_bytes())  # in memory, since it may grow meanwhile
        self._store.put(manifest.manifest_name, manifests.to_json(manifest).encode())
        newest = max([manifest, *self._checkpoints.stored], key=lambda each: each.step)
        if newest.step != self._pointer_step:  # an older one, that an earlier attempt could not store, moves nothing
            self._move_pointer(newest)

    def apply_retention(self) -> None:
        """Delete the stored checkpoints that the retention policy does not keep."""
        stored = self._checkpoints.stored
        keep = {*steps_to_keep(stored), self._protected}
        for manifest in [each for each in stored if each.step not in keep]:
            self._delete(manifest.step)
            self._checkpoints.remove(manifest.step)

    def finish_earlier(self) -> None:
        """Do what an earlier attempt left undone: incomplete and superseded checkpoints to delete, a pointer to move.

        Whatever a frozen one still had to delete is gone then.
        """
        try:
            for step in self._checkpoints.orphans:
                self._delete(step)
            self.apply_retention()
            if stored := self._checkpoints.stored:
                self._move_pointer(stored[-1])
        except LeaseError:
            raise
        except JobError as error:  # harmless: the next checkpoint does the same
            events.warn(f"The checkpoints of an earlier attempt could not be cleaned up: {error}")
        self._checkpoints.orphans.clear()

    def delete_local(self, step: int) -> None:
        """Delete this machine's copy, the manifest first so that none is left without its file."""
        for key in (f"{FOLDER}/{step}.json", f"{FOLDER}/{step}.ckpt"):
            if self._folder.remote:
                (self._folder.local / key).unlink(missing_ok=True)
            else:
                self._store.delete(key)

    def _delete(self, step: int) -> None:
        if self._folder.remote:
            for suffix in ("json", "ckpt"):
                self._store.delete(f"{FOLDER}/{step}.{suffix}")
        self.delete_local(step)

    def _move_pointer(self, manifest: Manifest) -> None:
        fields = {"step": manifest.step, "manifest": manifest.manifest_name, "sha256": manifest.sha256}
        self._store.put(POINTER, json.dumps(fields).encode())
        self._pointer_step = manifest.step


def _sync(path: Path) -> int:
    """Make a file durable; returns its size in bytes. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
