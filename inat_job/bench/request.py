"""What the bench is asked for beside the settings of the run that it measures."""

from dataclasses import dataclass

from inat_job import knobs
from inat_job.knobs import knob

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
    """How often, which stages, on what pictures, and beside what."""

    stages: tuple[str, ...] = knob(STAGES, "What is measured, such as decode,epoch; else all", choices=STAGES)
    runs: int = knob(5, "Times that each thing is measured", minimum=1)
    synthetic: int | None = knob(None, "Make so many pictures to train on, instead of --data", minimum=100)
    repeat: int = knob(1, "Take every picture so many times, under other names", minimum=1)
    baseline: bool = knob(False, "Train the plain way too, epoch by epoch in turn with ours")
    end_to_end: bool = knob(False, "Run the whole job and the whole baseline too, in turn")
    baseline_epochs: int = knob(0, "Of these train so many in the baseline, and extrapolate; 0 is all", minimum=0)
    scale: tuple[int, ...] = knob((), "Memory and time at multiples of the data set, as 1,2,4,8", minimum=1)
    json: str | None = knob(None, "Write all figures to this file, and not to the log")

    def __post_init__(self) -> None:
        knobs.check(self)

    @property
    def trains(self) -> bool:
        """Whether whole epochs are to be trained, not just a few steps to come to what the other stages need."""
        return self.baseline or bool({"step", "epoch"} & set(self.stages))
