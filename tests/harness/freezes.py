"""Freezes a job by SIGSTOP, lets another take its run over and finish it, and then lets the first go on.

    python -m tests.harness.freezes --rounds 100 --seed 0 [--output s3,local] [--jobs 4] [--json FILE] [--logs FOLDER]

Two in three rounds freeze the job just before it changes the run's folder or lists the attempts, at points spread over
the whole run; the others at a random moment. The exit code is 1 if the finished run changes by one byte after the
frozen job goes on, if it is not the undisturbed run, or if a job ends with another code than 0 or 75.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.harness import runner, stores, warm_jobs
from tests.harness.cases import FREEZE_CASE
from tests.harness.freeze_points import PassPoints
from tests.harness.made_images import tree, write_zip
from tests.harness.runner import EndedJob, Job
from tests.harness.stores import LocalOutput, Output, Result, S3Output
from tests.harness.tables import markdown_table

TAKEN_OVER = 75
_AT_RANDOM_EVERY = 3
_DIFFERENT = (
    *("attempts/", "checkpoints/", "config.json", "report.json", "report.html"),
    *("model/README.md", "plots/curves.png"),  # which name the run, and mark the attempts
)
"""Files that differ from one undisturbed run to the next: they hold times, the run's own id, and who has worked on it.
Which checkpoints are taken depends on the time too; they must match their manifests. The report's scores must be the
same."""


@dataclass(frozen=True)
class FreezeSetup:
    """Where runs are frozen: the output, the data, a warm cache, an undisturbed run, its files, points and seconds."""

    kind: str
    folder: Path
    output: Output
    archive: Path
    environment: Mapping[str, str]
    result: Result
    files: Mapping[str, bytes]
    points: int
    seconds: float
    logs: Path | None = None


@dataclass
class Round:
    """One freeze: where it hit, the codes of the frozen job and of the one that took over, and what was wrong."""

    kind: str
    name: str
    at: int = 0
    point: str = ""
    phase: str = ""
    codes: tuple[int, int] = (0, 0)
    wrong: list[str] = field(default_factory=list)


def run_round(setup: FreezeSetup, number: int, rng: random.Random, at: int) -> Round:
    """Freeze a job at the point `at`, or at a random moment if it is 0, and judge the run and the codes.

    A job that ends before that has not been frozen: another one is, earlier.
    """
    done = Round(setup.kind, f"{setup.kind}-{number}", at)
    folder = setup.folder / done.name
    own, other = folder / "cache", folder / "other-cache"
    for cache in (own, other):
        shutil.copytree(setup.folder / "cache", cache)
    passed = PassPoints(done.name, str(folder / "points"), at)
    with _job(setup, done.name, own, passed) as frozen:
        if not at and frozen.sleep_until(rng.uniform(0.0, setup.seconds)):
            frozen.kill(signal.SIGSTOP)
        if frozen.wait_until_frozen():
            _take_over(setup, done, frozen, own if rng.random() < 0.5 else other)
            done.point = passed.last() if at else "a random moment"
        elif (code := frozen.end().code) != 0:
            done.wrong.append(f"ended with {code} before it was frozen")
    if not done.wrong:
        setup.output.delete(done.name)
        shutil.rmtree(folder)
        if not done.point:  # it was faster than the undisturbed run: freeze one earlier
            return run_round(setup, number, rng, at * 9 // 10)
    return done


def _take_over(setup: FreezeSetup, done: Round, frozen: Job, cache: Path) -> None:
    with _job(setup, done.name, cache) as second:
        ended = second.end()
    finished = contents(setup.output, done.name)
    frozen.kill(signal.SIGCONT)
    first = frozen.end()
    after = contents(setup.output, done.name)
    done.codes, done.phase = (first.code, ended.code), (first.phases() or ["import"])[-1]
    _log(setup, done.name, first, ended)
    if ended.code != 0:
        done.wrong.append(f"the second job ended with {ended.code}: {ended.last}")
    if first.code not in (0, TAKEN_OVER):
        done.wrong.append(f"the frozen job ended with {first.code}: {first.last}")
    changed = _differing(finished, after)
    if first.code == 0:  # it had finished the run itself, or has found it finished: the end of its own attempt is noted
        changed = [name for name in changed if not name.startswith("attempts/")]
    done.wrong += [f"{name} changed after the frozen job went on" for name in changed]
    done.wrong += stores.damaged_checkpoints(setup.output, done.name)
    result = stores.result_of(setup.output, done.name)
    done.wrong += result.differences(setup.result) if result else ["has no result"]
    done.wrong += [f"{name} is not the undisturbed run's" for name in _differing(_common(setup.files), _common(after))]


def contents(output: Output, run: str) -> dict[str, bytes]:
    """Every file of a run."""
    return {name: output.read(run, name) or b"" for name in output.names(run)}


def _differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _common(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not name.startswith(_DIFFERENT)}


def _job(setup: FreezeSetup, run: str, cache: Path, prologue: PassPoints | None = None) -> Job:
    command = FREEZE_CASE.arguments(str(setup.archive), setup.output.uri, cache, run)
    start = partial(warm_jobs.fork_job, prologue=prologue) if prologue else warm_jobs.fork_job
    return Job(command, setup.environment, setup.folder / run / "work", start=start)


def _log(setup: FreezeSetup, run: str, *ended: EndedJob) -> None:
    for each in ended if setup.logs else ():
        assert setup.logs
        each.append_to_log(setup.logs / f"{run}.log")


@contextmanager
def freeze_setup(kind: str, logs: Path | None = None) -> Iterator[FreezeSetup]:
    """The output, "s3" or "local", and an undisturbed run in it."""
    with tempfile.TemporaryDirectory(prefix="inat-freezes-") as name, stores.s3_endpoint() as endpoint:
        folder = Path(name)
        output: Output = S3Output(endpoint) if kind == "s3" else LocalOutput(folder / "runs")
        environment = runner.job_environment(AWS_ENDPOINT_URL=endpoint, **stores.credentials())
        archive = write_zip(folder / "images.zip", tree(train=24, test=4))
        command = FREEZE_CASE.arguments(str(archive), output.uri, folder / "cache", "undisturbed")
        for run in ("warm", "undisturbed"):  # the first one also prepares the cache
            passed = PassPoints(run, str(folder / f"{run}-points"), 0)
            command = FREEZE_CASE.arguments(str(archive), output.uri, folder / "cache", run)
            start = partial(warm_jobs.fork_job, prologue=passed)
            with Job(command, environment, folder / "work", start=start) as job:
                ended = job.end()
        result, files = stores.result_of(output, "undisturbed"), contents(output, "undisturbed")
        if ended.code != 0 or result is None:
            raise RuntimeError(f"The undisturbed run ended with {ended.code}: {ended.last}")
        yield FreezeSetup(
            kind, folder, output, archive, environment, result, files, passed.count(), ended.seconds, logs
        )


def freeze_rounds(setup: FreezeSetup, rounds: int, seed: int, jobs: int) -> list[Round]:
    """So many rounds, `jobs` at a time: the points are spread evenly over those of the undisturbed run."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda number: _one(setup, number, rounds, seed), range(rounds)))


def _one(setup: FreezeSetup, number: int, rounds: int, seed: int) -> Round:
    rng = random.Random(f"{seed} {setup.kind} {number}")
    at_random = number % _AT_RANDOM_EVERY == _AT_RANDOM_EVERY - 1
    at = 0 if at_random else 1 + int((number + rng.random()) * setup.points / rounds * 0.95)  # times vary a little
    done = run_round(setup, number, rng, at)
    wrong = "".join(f"; WRONG: {text}" for text in done.wrong)
    print(f"{done.name}: {done.phase}, before {done.point}: codes {done.codes}{wrong}", file=sys.stderr, flush=True)
    return done


def table(rounds: Sequence[Round]) -> str:
    """A row for each store and phase in which jobs were frozen, followed by what went wrong."""
    rows = []
    for kind, phase in dict.fromkeys((each.kind, each.phase) for each in rounds):
        of = [each for each in rounds if (each.kind, each.phase) == (kind, phase)]
        codes = " ".join(f"{code}x{sum(each.codes[0] == code for each in of)}" for code in {e.codes[0] for e in of})
        wrong = sum(bool(each.wrong) for each in of)
        at = f"{sum(each.at > 0 for each in of)} + {sum(each.at == 0 for each in of)}"
        rows.append((kind, phase, at, codes, f"{wrong} WRONG" if wrong else "byte-equal"))
    wrong_lines = [f"- {each.name} ({each.point}): {text}" for each in rounds for text in each.wrong]
    heads = ("output", "frozen in", "at points + at random", "codes when it goes on", "verdict")
    return "\n".join([markdown_table(heads, rows), *wrong_lines])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="rounds, divided among the outputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="local,s3", help="s3, local or both")
    parser.add_argument("--jobs", type=int, default=4, help="rounds at a time; half of each is waiting")
    parser.add_argument("--json", type=Path, help="file for the rounds")
    parser.add_argument("--logs", type=Path, help="folder for the log of each round")
    options = parser.parse_args()
    kinds, done, begun = options.output.split(","), [], time.monotonic()
    for kind in kinds:
        with freeze_setup(kind, options.logs) as setup:
            done += freeze_rounds(setup, options.rounds // len(kinds), options.seed, options.jobs)
    wrong = [each.name for each in done if each.wrong]
    print(table(done))
    print(f"\n{len(done)} rounds in {time.monotonic() - begun:.0f} s, {len(wrong)} wrong")
    if options.json:
        options.json.write_text(json.dumps([vars(each) for each in done], indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
