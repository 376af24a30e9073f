"""Whole processes: the time to the first step, the job against the baseline from end to end, memory as data grows."""

import dataclasses
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inat_job.bench import baseline, children, synthetic
from inat_job.bench.measurement import Measured
from inat_job.ingest import archives
from inat_job.settings import Settings

BUILT = "built"
"""What the program of the bare imports says at its end."""

FIRST_STEP = r'"event": "phase".*"phase": "train"'


def first_step(settings: Settings, classes: int, scratch: Path, runs: int) -> list[Measured]:
    """Seconds from a process's start to its first training step, from a prepared cache, against the bare imports."""
    spec = {"part": settings.part, "flags": _flags(settings), "classes": classes}
    bare = children.module("bare_build", json.dumps(spec))
    ours, least = [], []
    for number in range(runs + 1):
        output = str(scratch / f"start-{number}")
        ended = children.run(children.job(placed(settings, output=output)), until=FIRST_STEP)
        imports = children.run(bare, until=BUILT).second_of(BUILT)
        if number:
            ours.append(ended.second_of(FIRST_STEP))
            least.append(imports)
    return [Measured("time to first step", "s", tuple(ours), "imports and network", tuple(least))]


def _flags(settings: Settings) -> dict[str, Any]:
    flags = children.flags_of(settings.anchored())
    flags["data.cache_dir"] = str(Path(settings.data.cache_dir).absolute())
    return {key: value for key, value in flags.items() if value is not None}


def placed(settings: Settings, output: str, **data: Any) -> Settings:
    """The same run with another output, and other data or another cache."""
    run = dataclasses.replace(settings.run, output=output, resume="auto", run_id="r", force=False)
    return dataclasses.replace(settings, run=run, data=dataclasses.replace(settings.data, **data))


def end_to_end(settings: Settings, unpacked: Path, scratch: Path, runs: int, epochs: int) -> list[Measured]:
    """Both whole, by turns, without a prepared cache; the baseline for `epochs` epochs and the rest extrapolated."""
    rows = [_both(settings, unpacked, scratch / f"whole-{number}", epochs) for number in range(runs)]
    ours_s, from_cache_s, plain_s, ours, plain = (tuple(column) for column in zip(*rows, strict=True))
    of = settings.train.epochs
    note = "" if epochs == of else f"{epochs} of {of} epochs trained, the seconds of the rest extrapolated"
    return [
        Measured("whole job", "s", ours_s, note="pull and prepare included"),
        Measured("whole job from a prepared cache", "s", from_cache_s, note="a second one, features computed anew"),
        Measured("whole baseline", "s", plain_s, note=note),
        Measured("whole baseline over whole job", "times", tuple(b / a for a, b in zip(ours_s, plain_s, strict=True))),
        Measured("test accuracy of the job", "", ours),
        Measured("test accuracy of the baseline", "", plain, note=note),
    ]


def _both(settings: Settings, unpacked: Path, place: Path, epochs: int) -> tuple[float, float, float, float, float]:
    cache = place / "cache"
    cache.mkdir(parents=True)
    (cache / "weights").symlink_to((Path(settings.data.cache_dir) / "weights").absolute())
    ours = children.run(children.job(placed(settings, str(place), cache_dir=str(cache))))
    report = json.loads((place / "r" / "report.json").read_text())
    shutil.rmtree(cache / "features", ignore_errors=True)
    again = children.run(children.job(placed(settings, str(place / "again"), cache_dir=str(cache))))
    plain = children.run(baseline.command(baseline.spec(settings, unpacked, epochs, lockstep=False)))
    told = json.loads(plain.lines[-1][1])
    more = (settings.train.epochs - epochs) * statistics.median(told["seconds"][1:] or told["seconds"])
    return ours.seconds, again.seconds, plain.seconds + more, report["test"]["accuracy"], told["accuracy"]


def growth(settings: Settings, container: archives.Container, scratch: Path, factors: Sequence[int]) -> list[Measured]:
    """The job for an epoch on multiples of the data set: its most anonymous memory, and the time for a image."""
    train = dataclasses.replace(settings.train, epochs=1)
    settings = dataclasses.replace(settings, train=train)
    rows = [_grown(settings, container, scratch / f"scale-{factor}", factor) for factor in factors]
    found = []
    for name, unit, column in (
        ("peak anonymous memory", "MB", 0),
        ("preparing a image", "ms", 1),
        ("training a image", "ms", 2),
        ("testing a image", "ms", 3),
    ):
        first = rows[0][column]
        for factor, row in zip(factors, rows, strict=True):
            limit = (f"at {factors[0]}x", (first,)) if factor != factors[0] else ("", ())
            found.append(Measured(f"{name} at {factor}x", unit, (row[column],), *limit))
    return found


def _grown(settings: Settings, container: archives.Container, place: Path, factor: int) -> tuple[float, ...]:
    place.mkdir(parents=True)
    data = synthetic.repeated(container, settings.data.uri, factor, place / "images.zip")
    where = {"uri": str(data), "cache_dir": str(place / "cache")}
    ended = children.run(children.job(placed(settings, str(place), **where)))
    report = json.loads((place / "r" / "report.json").read_text())
    timing, counts = report["timing"], report["data"]
    every = counts["n_train"] + counts["n_val"] + counts["n_test"]
    rate = report["throughput"]["train_images_per_s"] or counts["n_train"] / timing["train_s"]
    tested = 1e3 * timing["test_s"] / (counts["n_val"] + counts["n_test"])
    return ended.peak_bytes / 1e6, 1e3 * timing["prepare_s"] / every, 1e3 / rate, tested
