"""Options that belong to one command and are not settings of a run: for `status`, `prepare` and `bench`."""

import math
from dataclasses import dataclass

from inat_job import options
from inat_job.errors import UsageError
from inat_job.options import option

LIST = "list"


@dataclass(frozen=True)
class StatusOptions:
    """How often is looked."""

    watch: bool = option(False, "Look again until nobody works on the run any more, and end with its exit code")


@dataclass(frozen=True)
class PrepareOptions:
    """Whether old caches go, and nothing else is done."""

    prune: str | None = option(
        None, "List what lies in --cache-dir and stop; with an age as 30d, delete what no job used so long", bare=LIST
    )

    def __post_init__(self) -> None:
        _ = self.unused_s  # which looks whether it is an age

    @property
    def unused_s(self) -> float | None:
        """Seconds without use after which a cache is deleted; None where nothing is. Raises UsageError."""
        if self.prune in (None, LIST):
            return None
        age = options.timed(options.options_of(type(self))["prune"][0])
        seconds = float(options.parse(age, float, self.prune))
        if not 0 <= seconds < math.inf:
            raise UsageError(f"{age.flag} is {self.prune}: it must be at least 0, such as 30d.")
        return seconds


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
class BenchOptions:
    """How often, which stages, on what images, and beside what."""

    stages: tuple[str, ...] = option(STAGES, "What is measured, such as decode,epoch; else all", choices=STAGES)
    runs: int = option(5, "Times that each thing is measured", minimum=1)
    synthetic: int | None = option(None, "Make so many images to train on, instead of --data", minimum=100)
    repeat: int = option(1, "Take every image so many times, under other names", minimum=1)
    baseline: bool = option(False, "Train the plain way too, epoch by epoch in turn with ours")
    end_to_end: bool = option(False, "Run the whole job and the whole baseline too, in turn")
    baseline_epochs: int = option(0, "Of these train so many in the baseline, and extrapolate; 0 is all", minimum=0)
    scale: tuple[int, ...] = option((), "Memory and time at multiples of the data set, as 1,2,4,8", minimum=1)
    json: str | None = option(None, "Write all figures to this file, and not to the log")

    def __post_init__(self) -> None:
        options.check(self)

    @property
    def trains(self) -> bool:
        """Whether whole epochs are to be trained, not just a few steps to come to what the other stages need."""
        return self.baseline or bool({"step", "epoch"} & set(self.stages))
