"""What the bench is asked for beside the settings of the run that it measures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inat_job.errors import UsageError

STAGES = (
    "pull",
    "decode",
    "assembly",
    "copy",
    "augmentation",
    "forward",
    "step",
    "epoch",
    "matrix",
    "test",
    "checkpoint",
    "start",
)
"""In the order of a run; `step` and `epoch` are measured together, by turns."""


@dataclass(frozen=True)
class Request:
    """How often, which stages, on what pictures, and beside what.

    `repeat` takes every picture of the data set as many times, `synthetic` makes as many to train on; `scale` is for
    memory and time at multiples of the data set, `baseline_epochs` what of it `end_to_end` trains before it is
    extrapolated, 0 for all.
    """

    runs: int = 5
    stages: tuple[str, ...] = STAGES
    baseline: bool = False
    end_to_end: bool = False
    baseline_epochs: int = 0
    synthetic: int = 0
    repeat: int = 1
    scale: tuple[int, ...] = ()
    json: str | None = None

    def __post_init__(self) -> None:
        _at_least("--runs", (self.runs,), 1)
        _at_least("--repeat", (self.repeat,), 1)
        _at_least("--scale", self.scale, 1)
        _at_least("--baseline-epochs", (self.baseline_epochs,), 0)
        if self.synthetic and self.synthetic < 100:
            raise UsageError(f"--synthetic is {self.synthetic}: it must be at least 100, ten of each class.")
        for name in self.stages:
            if name not in STAGES:
                raise UsageError(f"--stages has {name!r}: it must be of {', '.join(STAGES)}.")

    @property
    def trains(self) -> bool:
        """Whether whole epochs are to be trained, not just a few steps to come to what the other stages need."""
        return self.baseline or bool({"step", "epoch"} & set(self.stages))


def request_of(options: Mapping[str, Any]) -> Request:
    """The request of the command line's options, by their names; lists come as text. Raises UsageError."""
    stages, scale = names(options["stages"]), numbers("--scale", options["scale"])
    return Request(**{**options, "stages": stages, "scale": scale})


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, none of an empty text. Raises UsageError."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{flag} is {text!r}: it must be whole numbers separated by commas.") from None


def names(text: str) -> tuple[str, ...]:
    """The stages of a text, all of an empty one."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) or STAGES


def _at_least(flag: str, values: Iterable[int], least: int) -> None:
    for value in values:
        if value < least:
            raise UsageError(f"{flag} is {value}: it must be at least {least}.")
