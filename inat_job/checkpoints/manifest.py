"""What is known of a checkpoint without opening it, and the policy on checkpoints as functions of that alone."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FOLDER = "checkpoints"
POINTER = f"{FOLDER}/latest.json"
KEPT = 2

_ENDS = ("", "finished", "early stop", "max-time")
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's facts; `accuracies` are the validation's of all epochs so far, its own included.

    `validate` says that its epoch's validation is still to be done. `ended` is the reason why training was over with
    it, and empty while it goes on.
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

    @property
    def name(self) -> str:
        """Key of the checkpoint in the run folder."""
        return f"{FOLDER}/{self.step}.ckpt"

    @property
    def manifest_name(self) -> str:
        """Key of this manifest in the run folder."""
        return f"{FOLDER}/{self.step}.json"


def steps_in(keys: Iterable[str], suffix: Literal["ckpt", "json"]) -> set[int]:
    """The steps whose checkpoints, or manifests, are among the keys of a run folder; others' files are not."""
    names = (re.fullmatch(rf"{FOLDER}/(0|[1-9][0-9]*)\.{suffix}", key) for key in keys)
    return {int(name[1]) for name in names if name}


def parse(data: bytes | str) -> Manifest:
    """The manifest in `data`. Raises ValueError unless it is whole and each of its fields can be true."""
    try:
        manifest = Manifest(**json.loads(data))
        sound = _is_sound(manifest)
    except (TypeError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    if not sound:
        raise ValueError("its fields cannot be true")
    return manifest


def to_json(manifest: Manifest) -> str:
    """What its object holds."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def steps_to_keep(manifests: Sequence[Manifest]) -> set[int]:
    """Steps of the checkpoints that stay: the best by validation accuracy and the last two."""
    newest = sorted(manifest.step for manifest in manifests)[-KEPT:]
    top = best_of(manifests)
    return {*newest, *([top.step] if top else [])}


def best_of(manifests: Sequence[Manifest]) -> Manifest | None:
    """That with the highest validation accuracy; of several, that with the lowest validation loss."""
    scored = [each for each in manifests if each.val_accuracy is not None and each.val_loss is not None]
    return min(scored, key=lambda each: (-(each.val_accuracy or 0.0), each.val_loss, each.step), default=None)


def epochs_since_best(accuracies: Sequence[float]) -> int:
    """Epochs since the best validation accuracy was first reached."""
    return len(accuracies) - 1 - list(accuracies).index(max(accuracies)) if accuracies else 0


def _is_sound(manifest: Manifest) -> bool:
    scored = (manifest.val_accuracy is None) == (manifest.val_loss is None)
    return (
        all(type(count) is int and count >= 0 for count in (manifest.step, manifest.epoch, manifest.size))
        and all(_is_number(each) for each in (manifest.val_loss, manifest.images_per_s) if each is not None)
        and isinstance(manifest.accuracies, list)
        and all(_is_share(each) for each in (*manifest.accuracies, manifest.val_accuracy or 0.0))
        and _is_number(manifest.train_s)
        and type(manifest.validate) is bool
        and manifest.ended in _ENDS
        and all(isinstance(each, str) for each in (manifest.data_digest, manifest.split_digest, manifest.sha256))
        and len(manifest.sha256) == _SHA256_DIGITS
        and scored
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and value <= 1
