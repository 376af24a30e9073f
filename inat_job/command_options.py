"""Options that are not settings of a run: those of one command, such as `status`, and what is logged."""

import dataclasses
import math
import re
from dataclasses import dataclass

from inat_job import options
from inat_job.errors import UsageError
from inat_job.options import Option, SettingsSection, option

LIST = "list"


@dataclass(frozen=True)
class LogOptions(SettingsSection):
    """How a command reports what it does; this decides nothing about a run and is not stored with it."""

    log_format: str = option(
        "auto",
        "Text for people, or JSON with one object per line; auto is JSON on Kubernetes, AWS Batch and SageMaker",
        choices=("auto", "text", "json"),
    )
    quiet: bool = option(False, "Log only warnings, errors and the last line", short="-q")
    verbose: bool = option(False, "Log details too: checkpoints, compilation, ranks and the like", short="-v")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose contradict each other: leave one out.")


@dataclass(frozen=True)
class StatusOptions:
    """How often `status` looks."""

    watch: bool = option(False, "Repeat until no job works on the run, and exit with the code of its last attempt")


@dataclass(frozen=True)
class CompareOptions(SettingsSection):
    """How `compare` shows its result."""

    html: str = option("compare.html", "The page to write; an earlier comparison there is replaced", metavar="PATH")
    json: bool = option(False, "Print one JSON object instead of the table")


@dataclass(frozen=True)
class EvaluationOptions(SettingsSection):
    """What `test` reports beside the plain accuracy."""

    tta: str = option(
        "none",
        "Report test-time augmentation beside the plain accuracy: flip averages the probabilities of each image and "
        "its mirror image",
        choices=("none", "flip"),
    )


@dataclass(frozen=True)
class PrepareOptions:
    """Whether `prepare` deletes old caches, and does nothing else."""

    prune: str | None = option(
        None,
        "List what is in --cache-dir and stop; with an age such as 30d, delete what no job has used for that long",
        metavar="[DURATION]",
        bare=LIST,
    )

    def __post_init__(self) -> None:
        _ = self.unused_s  # which checks that it is an age

    @property
    def unused_s(self) -> float | None:
        """Seconds without use after which a cache is deleted; None if nothing is. Raises UsageError."""
        return _age_s(options.options_of(type(self))["prune"][0], self.prune)


@dataclass(frozen=True)
class PruneOptions:
    """What `prune` deletes."""

    runs: str = option(
        LIST,
        "List the unfinished runs; with an age such as 30d, delete those without a sign of life for that long",
        metavar="[DURATION]",
        bare=LIST,
        shown_default="list",
    )

    def __post_init__(self) -> None:
        _ = self.age_s  # which checks that it is an age

    @property
    def age_s(self) -> float | None:
        """Seconds without a sign of life after which a run is deleted; None if none is. Raises UsageError."""
        return _age_s(options.options_of(type(self))["runs"][0], self.runs)


def _age_s(each: Option, value: str | None) -> float | None:
    """The age from which something is deleted, in seconds; None where nothing is. Raises UsageError."""
    if value in (None, LIST):
        return None
    if str(value).isdecimal():  # elsewhere that is seconds, which would delete what is meant to stay
        raise UsageError(
            f"{each.flag} is {value}, which has no unit: write {value}d for days, or {value}s for seconds."
        )
    seconds = float(options.parse(dataclasses.replace(each, duration=True), float, value))
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{each.flag} is {value}: it must be at least 0, such as 30d.")
    return seconds


@dataclass(frozen=True)
class PredictOptions(SettingsSection):
    """What computes the predictions of `predict`, and how they are shown."""

    runtime: str = option(
        "torch",
        "What runs the network: torch, or onnx for a run with --export onnx, on the CPU and without torch",
        choices=("torch", "onnx"),
    )
    top_k: int = option(1, "Classes that are shown of each image, the most probable first", minimum=1)
    json: bool = option(False, "Print one JSON object a line instead of a table")
    csv: str | None = option(None, "Also write the predictions to this file", metavar="PATH")


_IN_MEMORY = re.compile(r"sqlite(\+\w+)?://(/?(\?|$)|.*(:memory:|[?&]mode=memory))", re.IGNORECASE)
"""Addresses with which SQLite makes a database that no other process sees."""


@dataclass(frozen=True)
class SweepOptions(SettingsSection):
    """How `sweep` searches, and when it ends."""

    trials: int = option(30, "Trials in all, over all workers and restarts", minimum=1)
    space: str | None = option(
        None,
        "TOML that narrows or extends what is searched, or a file of it",
        metavar="TOML",
        shown_default="the part's space",
    )
    sampler: str = option("tpe", "How the next point is chosen", choices=("tpe", "random"))
    pruner: str = option(
        "asha", "How hopeless trials are ended early, by validation accuracy", choices=("asha", "median", "none")
    )
    max_time: float | None = option(
        None,
        "End once trials were at work for this long, such as 8h, over all workers and restarts; pauses do not count",
        shown_default="never",
        duration=True,
        minimum=1.0,
    )
    target: float | None = option(
        None, "End with the first trial of this validation accuracy", shown_default="none", minimum=0.0, maximum=1.0
    )
    patience: int | None = option(
        None, "End after this many trials without a better one", shown_default="never", minimum=1
    )
    parallel: int = option(1, "Trials at a time on this machine, each on a GPU of its own", minimum=1)
    study: str | None = option(
        None,
        "Database for the study, such as postgresql://host/name",
        name="storage",
        shown_default="the sweep's folder",
        uri=True,
    )
    retrain: int = option(
        3, "Seeds with which the best settings are trained again and tested; 0 ends with the search", minimum=0
    )
    final: bool = option(
        False, "Train them again on the validation images too, for the epochs after which the best trial was best"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final and not self.retrain:
            raise UsageError("--final is given and --retrain is 0, so that nothing is trained again: leave one out.")
        if _IN_MEMORY.match(self.study or ""):
            raise UsageError(
                f"--storage is {options.public_uri(str(self.study))}, a database in memory, which ends with this "
                "process: name a file, such as sqlite:///study.db, or leave it out."
            )


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
class BenchOptions(SettingsSection):
    """What `bench` measures, how often, on which images, and beside what."""

    stages: tuple[str, ...] = option(
        STAGES, f"What is measured: any of {', '.join(STAGES)}", choices=STAGES, shown_default="all"
    )
    runs: int = option(5, "How many times each stage is measured", minimum=1)
    synthetic: int | None = option(None, "Train on this many generated images instead of --data", minimum=100)
    repeat: int = option(1, "Use every image this many times, under different names", minimum=1)
    baseline: bool = option(False, "Also train with plain Lightning, alternating with this job epoch by epoch")
    end_to_end: bool = option(False, "Also run the whole job and the whole baseline, alternately")
    baseline_epochs: int = option(
        0, "Epochs that the whole baseline trains; the rest is extrapolated; 0 trains all", minimum=0
    )
    scale: tuple[int, ...] = option(
        (), "Memory and time at multiples of the data set, such as 1,2,4,8", minimum=1, shown_default="not measured"
    )
    json: str | None = option(None, "Write all figures to this file, and not to the log", metavar="PATH")

    @property
    def trains(self) -> bool:
        """Whether whole epochs are trained, not only the few steps that the other stages need."""
        return self.baseline or bool({"step", "epoch"} & set(self.stages))
