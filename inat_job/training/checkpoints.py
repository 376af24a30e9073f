"""Checkpoints as a run folder holds them: `<step>.ckpt`, a manifest each with its hash, and a pointer moved last."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from inat_job import events
from inat_job.errors import BadDataError, ConflictError, JobError, PreconditionFailed
from inat_job.storage import Entry
from inat_job.storage.hashing import sha256_of
from inat_job.storage.run_folder import RunFolder

FOLDER = "checkpoints"
POINTER = f"{FOLDER}/latest.json"
KEPT = 2


@dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint without opening it; `accuracies` are the validation's of all epochs so far."""

    step: int
    epoch: int
    val_accuracy: float | None
    val_loss: float | None
    accuracies: list[float]
    complete: bool
    data_digest: str
    split_digest: str
    train_s: float
    images_per_s: float | None
    history: list[dict[str, Any]]
    sha256: str = ""
    size: int = 0

    @property
    def name(self) -> str:
        """Key of the checkpoint in the run folder."""
        return f"{FOLDER}/{self.step}.ckpt"

    @property
    def manifest_name(self) -> str:
        """Key of this manifest in the run folder."""
        return f"{FOLDER}/{self.step}.json"


def to_keep(manifests: Sequence[Manifest]) -> set[int]:
    """Steps of the checkpoints that stay: the best by validation accuracy and the last two."""
    newest = sorted(manifest.step for manifest in manifests)[-KEPT:]
    top = best_of(manifests)
    return {*newest, *([top.step] if top else [])}


def best_of(manifests: Sequence[Manifest]) -> Manifest | None:
    """That with the highest validation accuracy; of several, that with the lowest validation loss."""
    scored = [each for each in manifests if each.val_accuracy is not None and each.val_loss is not None]
    return min(scored, key=lambda each: (-(each.val_accuracy or 0.0), each.val_loss, each.step), default=None)


def stale(accuracies: Sequence[float]) -> int:
    """Epochs since the best validation accuracy was first reached."""
    return len(accuracies) - 1 - list(accuracies).index(max(accuracies)) if accuracies else 0


class ForeignWriterError(ConflictError):
    """Another job writes to the same run; to go on would mix the two."""


class Checkpoints:
    """The checkpoints of one run; `companions` are files of its folder that are stored with each of them."""

    def __init__(self, folder: RunFolder, companions: Sequence[str] = ()) -> None:
        self.folder = folder
        self._companions = companions
        self.uri = f"{folder.uri}/{FOLDER}"
        self._pointer: Entry | None = None
        self._pending: list[Manifest] = []
        self._damaged: list[Manifest] = []
        self.manifests: list[Manifest] = []

    def discover(self) -> Self:
        """Read what the store holds; manifests that cannot be read are left aside with a warning."""
        store = self.folder.store
        self._pointer = store.stat(POINTER)
        self.manifests = []
        for entry in store.list(f"{FOLDER}/"):
            if not entry.key.endswith(".json") or entry.key == POINTER:
                continue
            try:
                self.manifests.append(Manifest(**json.loads(store.read(entry.key))))
            except (ValueError, TypeError):
                events.warn(f"{self.folder.uri}/{entry.key} is damaged and is left aside")
        self.manifests.sort(key=lambda manifest: manifest.step)
        return self

    @property
    def known(self) -> list[Manifest]:
        """The checkpoints stored, and those that are only here because the store could not be reached."""
        waiting = {manifest.step for manifest in self._pending}
        return [*(each for each in self.manifests if each.step not in waiting), *self._pending]

    def newest(self) -> Manifest:
        """The last checkpoint taken."""
        return max(self.known, key=lambda manifest: manifest.step)

    def save(self, write: Callable[[Path], None], manifest: Manifest) -> Manifest:
        """Write a checkpoint here and store it. Trouble with the store is a warning: the next save tries again.

        Raises ConflictError for a full disk, ForeignWriterError when another job has moved the pointer.
        """
        path = self.folder.path(manifest.name)
        fresh = path.with_suffix(".tmp")
        try:
            write(fresh)
            digest, size = sha256_of(fresh), fresh.stat().st_size
            fresh.replace(path)
        except OSError as error:
            raise ConflictError(f"{path} cannot be written ({error.strerror}): free some disk.") from error
        complete = dataclasses.replace(manifest, sha256=digest, size=size)
        self._pending.append(complete)
        try:
            self.flush()
        except ForeignWriterError:
            raise
        except JobError as error:
            events.warn(f"checkpoint {complete.step} is not stored yet: {error}")
        return complete

    def flush(self) -> None:
        """Store what is only here, oldest first: checkpoint, manifest, then the pointer."""
        while self._pending:
            manifest = self._pending[0]
            for name in (manifest.name, *self._companions):
                self.folder.publish(name)
            self.folder.write_json(manifest.manifest_name, dataclasses.asdict(manifest))
            self.folder.publish(manifest.manifest_name)
            self._move_pointer(manifest)
            self._pending.pop(0)
            self.manifests = [each for each in self.manifests if each.step != manifest.step] + [manifest]
            self._retire()

    def latest(self) -> tuple[Manifest, Path] | None:
        """The newest checkpoint whose bytes have their hash, or None where there is none."""
        return self._first_intact(sorted(self.known, key=lambda manifest: -manifest.step))

    def best(self) -> tuple[Manifest, Path]:
        """The best intact checkpoint by validation accuracy, or else the newest."""
        top = best_of(self.known)
        ordered = sorted(self.known, key=lambda manifest: (manifest is not top, -manifest.step))
        found = self._first_intact(ordered)
        if found is None:
            raise BadDataError(f"{self.folder.uri} holds no intact checkpoint: train it first.")
        return found

    def at(self, step: int) -> tuple[Manifest, Path]:
        """The checkpoint of a step. Raises BadDataError where there is none, or it is damaged."""
        found = self._first_intact([manifest for manifest in self.manifests if manifest.step == step])
        if found is None:
            steps = ", ".join(str(manifest.step) for manifest in self.manifests) or "none"
            raise BadDataError(f"{self.uri} holds no intact checkpoint of step {step}: it has {steps}.")
        return found

    def _first_intact(self, ordered: Sequence[Manifest]) -> tuple[Manifest, Path] | None:
        for manifest in ordered:
            path = self._intact(manifest)
            if path:
                return manifest, path
            events.warn(f"{self.folder.uri}/{manifest.name} is missing or damaged and is passed over")
            # No longer counted among those that retention keeps, or it would let go of intact ones instead.
            self.manifests = [each for each in self.manifests if each is not manifest]
            self._damaged.append(manifest)
        return None

    def _intact(self, manifest: Manifest) -> Path | None:
        path = self.folder.path(manifest.name)
        if not (path.exists() and sha256_of(path) == manifest.sha256):
            if not self.folder.remote or self.folder.store.stat(manifest.name) is None:
                return None
            try:
                self.folder.store.get(manifest.name, path, sha256=manifest.sha256)
            except BadDataError:
                return None
        return path

    def _move_pointer(self, manifest: Manifest) -> None:
        store = self.folder.store
        text = json.dumps({"step": manifest.step, "manifest": manifest.manifest_name}).encode()
        try:
            if self._pointer is None:
                self._pointer = store.put(POINTER, text, if_none_match=True)
            else:
                self._pointer = store.put(POINTER, text, if_match=self._pointer.version)
        except PreconditionFailed:
            now = store.stat(POINTER)
            if now and self._pointer and now.version == self._pointer.version:  # a store without If-Match says so
                self._pointer = store.put(POINTER, text)
                return
            raise ForeignWriterError(
                f"Another job writes to {self.folder.uri}: give this one its own --run-id."
            ) from None

    def _retire(self) -> None:
        """Delete what retention lets go of, in the store and here; the manifest goes first, so none dangles."""
        keep = to_keep(self.manifests)
        present = {each.step for each in self.manifests}
        damaged = [each for each in self._damaged if each.step not in present]
        for manifest in [*damaged, *(each for each in self.manifests if each.step not in keep)]:
            for name in (manifest.manifest_name, manifest.name):
                self.folder.store.delete(name)
                (self.folder.local / name).unlink(missing_ok=True)
        self.manifests = [each for each in self.manifests if each.step in keep]
        self._damaged = []
