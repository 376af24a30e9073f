"""The index of a run's checkpoints: which are stored, which wait for upload, and which one to load.

A run folder holds `checkpoints/<step>.ckpt` and a manifest with its SHA-256, `checkpoints/<step>.json`. A checkpoint
without a manifest does not exist, and one whose bytes do not match their hash is passed over.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from inat_job import events
from inat_job.checkpoints import manifest as manifests
from inat_job.checkpoints.manifest import FOLDER, Manifest, best_of
from inat_job.errors import BadDataError
from inat_job.signals import Stop, never
from inat_job.storage.disk import sha256_of
from inat_job.storage.run_folder import RunFolder

_DOWNLOADS = 3
"""Downloads of a checkpoint before it counts as damaged: the damage may happen on the way here."""


class CheckpointIndex:
    """The manifests of a run's checkpoints: `stored` are in the store, `waiting` only on this machine so far.

    `orphans` are the steps of checkpoints without a manifest, left by a killed attempt. Thread-safe.
    """

    def __init__(self, folder: RunFolder, stop: Stop = never) -> None:
        self.folder = folder
        self.uri = f"{folder.uri}/{FOLDER}"
        self.orphans: set[int] = set()
        self._stop = stop
        self._lock = threading.RLock()
        self._stored: dict[int, Manifest] = {}
        self._waiting: dict[int, Manifest] = {}

    def discover(self, spooled: bool = False) -> Self:
        """Read the manifests in the store and, if `spooled`, those that an earlier attempt left on this machine.

        Manifests that cannot be read are ignored with a warning.
        """
        self._stored = {each.step: each for each in self._read_stored()}
        if spooled and self.folder.remote:
            self._waiting = {each.step: each for each in self._read_spooled() if self._stored.get(each.step) != each}
            self.orphans -= self._waiting.keys()
        return self

    @property
    def stored(self) -> list[Manifest]:
        """The checkpoints in the store, by step."""
        with self._lock:
            return [self._stored[step] for step in sorted(self._stored)]

    @property
    def waiting(self) -> list[Manifest]:
        """The checkpoints whose newest manifest is not in the store yet, by step."""
        with self._lock:
            return [self._waiting[step] for step in sorted(self._waiting)]

    @property
    def known(self) -> list[Manifest]:
        """All checkpoints, by step, each with its newest manifest."""
        with self._lock:
            both = {**self._stored, **self._waiting}
            return [both[step] for step in sorted(both)]

    def newest(self) -> Manifest:
        """The last checkpoint taken."""
        return self.known[-1]

    def mark_waiting(self, manifest: Manifest) -> None:
        """Add a checkpoint, or a new manifest of one, that is on this machine and not in the store."""
        with self._lock:
            self._waiting[manifest.step] = manifest

    def mark_stored(self, manifest: Manifest) -> None:
        """Add a checkpoint that is in the store with this manifest; it waits no longer unless it has a newer one."""
        with self._lock:
            self._stored[manifest.step] = manifest
            if self._waiting.get(manifest.step) == manifest:
                del self._waiting[manifest.step]

    def discard_waiting(self, step: int) -> None:
        """Remove what waits for upload of a checkpoint."""
        with self._lock:
            self._waiting.pop(step, None)

    def remove(self, step: int) -> None:
        """Remove a checkpoint from the index."""
        with self._lock:
            self._stored.pop(step, None)
            self._waiting.pop(step, None)

    def load_newest_intact(self) -> tuple[Manifest, Path] | None:
        """The newest intact checkpoint and its local path, or None if none was ever taken.

        Raises BadDataError if there are checkpoints and none is intact: whether to start again is a person's decision.
        """
        known = self.known
        found = self._first_intact(known[::-1])
        if known and found is None:
            raise BadDataError(
                f"{self.uri} holds {len(known)} checkpoints and none is intact: try another machine, or start again "
                "with --resume never --force."
            )
        return found

    def best(self) -> tuple[Manifest, Path]:
        """The intact checkpoint with the best validation accuracy, or else the newest intact one.

        Raises BadDataError if there is none.
        """
        best = best_of(self.known)
        found = self._first_intact(sorted(self.known, key=lambda each: (each is not best, -each.step)))
        if found is None:
            raise BadDataError(f"{self.folder.uri} holds no intact checkpoint: train it first.")
        return found

    def at_step(self, step: int) -> tuple[Manifest, Path]:
        """The stored checkpoint of a step. Raises BadDataError if there is none, or it is damaged."""
        found = self._first_intact([each for each in self.stored if each.step == step])
        if found is None:
            steps = ", ".join(str(each.step) for each in self.stored) or "none"
            raise BadDataError(f"{self.uri} holds no intact checkpoint of step {step}: its steps are {steps}.")
        return found

    def _first_intact(self, ordered: Sequence[Manifest]) -> tuple[Manifest, Path] | None:
        for manifest in ordered:
            path = self._intact_file(manifest)
            if path:
                return manifest, path
            events.warn(f"{self.folder.uri}/{manifest.name} is missing or damaged and is skipped")
            # Otherwise retention would count it and delete an intact one instead. Its file is not deleted: perhaps
            # only this machine cannot read it.
            self.remove(manifest.step)
        return None

    def _intact_file(self, manifest: Manifest) -> Path | None:
        """The local file if its hash is right, downloaded if necessary; None if it is missing or damaged."""
        path = self.folder.path(manifest.name)
        if path.exists() and sha256_of(path) == manifest.sha256:
            return path
        if not self.folder.remote:
            return None
        for _ in range(_DOWNLOADS):
            if self.folder.store.stat(manifest.name) is None:
                return None
            try:
                self.folder.store.get(manifest.name, path, sha256=manifest.sha256, stop=self._stop)
                return path
            except BadDataError as error:
                events.warn(f"The download of a checkpoint is damaged: {error}")
        return None

    def _read_stored(self) -> Iterator[Manifest]:
        keys = [entry.key for entry in self.folder.store.list(f"{FOLDER}/")]
        with_manifest = manifests.steps_in(keys, "json")
        self.orphans = manifests.steps_in(keys, "ckpt") - with_manifest
        for step in sorted(with_manifest):
            try:
                data = self.folder.store.read(f"{FOLDER}/{step}.json")
            except BadDataError:  # the run goes on elsewhere, and retention deleted it since the listing
                continue
            yield from self._parse(step, data)

    def _read_spooled(self) -> Iterator[Manifest]:
        keys = [f"{FOLDER}/{path.name}" for path in (self.folder.local / FOLDER).glob("*")]
        for step in sorted(manifests.steps_in(keys, "json") & manifests.steps_in(keys, "ckpt")):
            yield from self._parse(step, (self.folder.local / f"{FOLDER}/{step}.json").read_bytes())

    def _parse(self, step: int, data: bytes) -> list[Manifest]:
        """The manifest, or nothing and a warning if it is damaged."""
        try:
            manifest = manifests.parse(data)
        except ValueError as error:
            events.warn(f"{self.uri}/{step}.json is damaged ({error}) and is ignored")
            return []
        if manifest.step != step:
            events.warn(f"{self.uri}/{step}.json is of step {manifest.step} and is ignored")
            return []
        return [manifest]
