"""A checkpoint's manifest: what is known without opening the checkpoint, and the policies that need nothing else."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from inat_job.storage.attempts import is_non_negative_number
from inat_job.storage.disk import parse_json

FOLDER = "checkpoints"
POINTER = f"{FOLDER}/latest.json"
KEPT = 2
"""Newest checkpoints that retention keeps, beside the best."""

_REASONS = ("", "finished", "early stop", "max-time")
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Manifest:
    """The manifest of one checkpoint.

    `epoch` counts finished epochs. `accuracies` are the validation accuracies, 0..1, of all epochs validated so
    far. `validate` is whether the epoch's validation is still to be done. `ended` is why training ended with this
    checkpoint, and empty while it goes on. `train_s` are the seconds of training until it. `cuts` are the steps
    after which the run's end was moved, each with its new number of steps (see Schedule).
    """

    step: int
    epoch: int
    val_accuracy: float | None
    val_loss: float | None
    accuracies: list[float]
    validate: bool
    ended: str
    data_digest: str
    split_digest: str
    train_s: float
    images_per_s: float | None
    sha256: str = ""
    size: int = 0
    cuts: list[list[int]] = dataclasses.field(default_factory=list)

    @property
    def awaits_validation(self) -> bool:
        """Whether the validation of its epoch is still to come: `validate` on disk."""
        return self.validate

    @property
    def name(self) -> str:
        """Key of the checkpoint in the run folder."""
        return f"{FOLDER}/{self.step}.ckpt"

    @property
    def manifest_name(self) -> str:
        """Key of this manifest in the run folder."""
        return f"{FOLDER}/{self.step}.json"


def steps_in(keys: Iterable[str], suffix: Literal["ckpt", "json"]) -> set[int]:
    """The steps of the checkpoints (ckpt) or manifests (json) among the keys of a run folder; others are ignored."""
    names = (re.fullmatch(rf"{FOLDER}/(0|[1-9][0-9]*)\.{suffix}", key) for key in keys)
    return {int(name[1]) for name in names if name}


def parse(data: bytes | str) -> Manifest:
    """The manifest in `data`. Raises ValueError unless it is complete and the value of every field is possible."""
    try:
        manifest = Manifest(**parse_json(data))
        sound = _is_sound(manifest)
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not sound:
        raise ValueError("a field has an impossible value")
    return manifest


def to_json(manifest: Manifest) -> str:
    """The text that `parse` reads."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def steps_to_keep(manifests: Sequence[Manifest]) -> set[int]:
    """The retention policy: the steps of the best checkpoint and of the last two."""
    newest = sorted(manifest.step for manifest in manifests)[-KEPT:]
    best = best_of(manifests)
    return {*newest, *([best.step] if best else [])}


def best_of(manifests: Sequence[Manifest]) -> Manifest | None:
    """The checkpoint with the highest validation accuracy; of equal ones, the one with the lowest validation loss."""
    scored = [each for each in manifests if each.val_accuracy is not None and each.val_loss is not None]
    return min(scored, key=lambda each: (-(each.val_accuracy or 0.0), each.val_loss, each.step), default=None)


def planned_epochs(newest: Manifest, epochs: int, per_epoch: int) -> int:
    """The epochs of a run, the last maybe in part, as of its newest manifest: fewer with too little `--max-time`."""
    return -(-newest.cuts[-1][1] // per_epoch) if newest.cuts and per_epoch else epochs


def epochs_since_best(accuracies: Sequence[float]) -> int:
    """Epochs since the best validation accuracy was first reached; 0 without any."""
    return len(accuracies) - 1 - list(accuracies).index(max(accuracies)) if accuracies else 0


def _is_sound(manifest: Manifest) -> bool:
    both_or_neither = (manifest.val_accuracy is None) == (manifest.val_loss is None)
    return (
        all(type(count) is int and count >= 0 for count in (manifest.step, manifest.epoch, manifest.size))
        and all(is_non_negative_number(each) for each in (manifest.val_loss, manifest.images_per_s) if each is not None)
        and isinstance(manifest.accuracies, list)
        and all(map(_is_share, manifest.accuracies))
        and (manifest.val_accuracy is None or _is_share(manifest.val_accuracy))
        and is_non_negative_number(manifest.train_s)
        and type(manifest.validate) is bool
        and manifest.ended in _REASONS
        and all(isinstance(each, str) for each in (manifest.data_digest, manifest.split_digest, manifest.sha256))
        and len(manifest.sha256) == _SHA256_DIGITS
        and both_or_neither
        and _are_cuts(manifest.cuts)
    )


def _are_cuts(value: Any) -> bool:
    """Whether these are pairs of a step and an end, no earlier, each decided before the end that it moves."""
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return False
    if not all(type(each) is int for pair in value for each in pair):
        return False
    ordered = all(old[0] <= at < old[1] != end for old, (at, end) in pairwise(value))
    return ordered and all(0 < at <= end for at, end in value)


def _is_share(value: Any) -> bool:
    return is_non_negative_number(value) and value <= 1
