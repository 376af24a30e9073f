"""The checkpoints of a run as its folder holds them: `<step>.ckpt`, a manifest each with its hash; which to believe."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from inat_job import events
from inat_job.checkpoints import manifest as manifests
from inat_job.checkpoints.manifest import FOLDER, POINTER, Manifest, best_of
from inat_job.errors import BadDataError
from inat_job.signals import Stop, never
from inat_job.storage import Entry
from inat_job.storage.disk import sha256_of
from inat_job.storage.run_folder import RunFolder

_FETCHES = 3
"""Times that a checkpoint is fetched before it counts as damaged: it may be the way here that damages it."""


class CheckpointIndex:
    """What is known of a run's checkpoints: `stored` are in the store, `waiting` so far on this machine alone.

    `orphans` are the steps of files that a killed attempt left without a manifest. May be used by several threads.
    """

    def __init__(self, folder: RunFolder, stop: Stop = never) -> None:
        self.folder = folder
        self.uri = f"{folder.uri}/{FOLDER}"
        self.pointer: Entry | None = None
        self.orphans: set[int] = set()
        self._stop = stop
        self._lock = threading.RLock()
        self._stored: dict[int, Manifest] = {}
        self._waiting: dict[int, Manifest] = {}

    def discover(self, spooled: bool = False) -> Self:
        """Read what the store holds, and if `spooled` what an earlier attempt left here that never reached it.

        Manifests that cannot be read are left aside with a warning.
        """
        self.pointer = self.folder.store.stat(POINTER)
        self._stored = {each.step: each for each in self._read_stored()}
        if spooled and self.folder.remote:
            self._waiting = {each.step: each for each in self._read_spooled() if self._stored.get(each.step) != each}
            self.orphans -= self._waiting.keys()
        return self

    @property
    def stored(self) -> list[Manifest]:
        """The checkpoints that the store holds, by step."""
        with self._lock:
            return [self._stored[step] for step in sorted(self._stored)]

    @property
    def waiting(self) -> list[Manifest]:
        """The checkpoints whose newest manifest is here alone, by step."""
        with self._lock:
            return [self._waiting[step] for step in sorted(self._waiting)]

    @property
    def known(self) -> list[Manifest]:
        """All of them, by step; of one that waits for its new manifest, the new one."""
        with self._lock:
            both = {**self._stored, **self._waiting}
            return [both[step] for step in sorted(both)]

    def newest(self) -> Manifest:
        """The last checkpoint taken."""
        return self.known[-1]

    def mark_waiting(self, manifest: Manifest) -> None:
        """Note that a checkpoint, or a new manifest of one, is here and not in the store."""
        with self._lock:
            self._waiting[manifest.step] = manifest

    def mark_stored(self, manifest: Manifest) -> None:
        """Note that the store holds a checkpoint with this manifest."""
        with self._lock:
            self._stored[manifest.step] = manifest
            if self._waiting.get(manifest.step) == manifest:
                del self._waiting[manifest.step]

    def discard_waiting(self, step: int) -> None:
        """No longer know what waits of a checkpoint."""
        with self._lock:
            self._waiting.pop(step, None)

    def remove(self, step: int) -> None:
        """No longer know a checkpoint."""
        with self._lock:
            self._stored.pop(step, None)
            self._waiting.pop(step, None)

    def latest(self) -> tuple[Manifest, Path] | None:
        """The newest checkpoint whose bytes have their hash, or None where none was ever taken.

        Raises BadDataError where there are some and none is intact: to start from nothing is for a person to decide.
        """
        known = self.known
        found = self._first_intact(known[::-1])
        if known and found is None:
            raise BadDataError(
                f"{self.uri} holds {len(known)} checkpoints and none is intact: try another machine, or start anew "
                "with --resume never --force."
            )
        return found

    def best(self) -> tuple[Manifest, Path]:
        """The best intact checkpoint by validation accuracy, or else the newest."""
        top = best_of(self.known)
        found = self._first_intact(sorted(self.known, key=lambda each: (each is not top, -each.step)))
        if found is None:
            raise BadDataError(f"{self.folder.uri} holds no intact checkpoint: train it first.")
        return found

    def at_step(self, step: int) -> tuple[Manifest, Path]:
        """The checkpoint of a step. Raises BadDataError where there is none, or it is damaged."""
        found = self._first_intact([each for each in self.stored if each.step == step])
        if found is None:
            steps = ", ".join(str(each.step) for each in self.stored) or "none"
            raise BadDataError(f"{self.uri} holds no intact checkpoint of step {step}: it has {steps}.")
        return found

    def _first_intact(self, ordered: Sequence[Manifest]) -> tuple[Manifest, Path] | None:
        for manifest in ordered:
            path = self._intact(manifest)
            if path:
                return manifest, path
            events.warn(f"{self.folder.uri}/{manifest.name} is missing or damaged and is passed over")
            # No longer counted among those that retention keeps, or it would let go of intact ones instead. But not
            # deleted either: it may be this machine that cannot read it.
            self.remove(manifest.step)
        return None

    def _intact(self, manifest: Manifest) -> Path | None:
        path = self.folder.path(manifest.name)
        if path.exists() and sha256_of(path) == manifest.sha256:
            return path
        if not self.folder.remote:
            return None
        for _ in range(_FETCHES):
            if self.folder.store.stat(manifest.name) is None:
                return None
            try:
                self.folder.store.get(manifest.name, path, sha256=manifest.sha256, stop=self._stop)
                return path
            except BadDataError as error:
                events.warn(f"A checkpoint came damaged: {error}")
        return None

    def _read_stored(self) -> Iterator[Manifest]:
        keys = [entry.key for entry in self.folder.store.list(f"{FOLDER}/")]
        described = manifests.steps_in(keys, "json")
        self.orphans = manifests.steps_in(keys, "ckpt") - described
        for step in sorted(described):
            try:
                data = self.folder.store.read(f"{FOLDER}/{step}.json")
            except BadDataError:  # the run goes on, and let go of it since it was listed
                continue
            yield from self._parsed(step, data)

    def _read_spooled(self) -> Iterator[Manifest]:
        keys = [f"{FOLDER}/{path.name}" for path in (self.folder.local / FOLDER).glob("*")]
        for step in sorted(manifests.steps_in(keys, "json") & manifests.steps_in(keys, "ckpt")):
            yield from self._parsed(step, (self.folder.local / f"{FOLDER}/{step}.json").read_bytes())

    def _parsed(self, step: int, data: bytes) -> list[Manifest]:
        try:
            manifest = manifests.parse(data)
        except ValueError as error:
            events.warn(f"{self.uri}/{step}.json is damaged ({error}) and is left aside")
            return []
        if manifest.step != step:
            events.warn(f"{self.uri}/{step}.json is of step {manifest.step} and is left aside")
            return []
        return [manifest]
