"""Kills runs at random moments, resumes them, and demands of each the very result of a run that nobody disturbed.

    python -m tests.harness.soak --rounds 100 --seed 0 [--parts a,b] [--output s3|local] [--jobs 2]
        [--json FILE] [--logs FOLDER]

A round is one interrupted attempt. Ends with 1 when a run ended otherwise than its reference, an attempt with another
code than it may, hung, or lost more work than the time between two checkpoints and one save.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import attempts, runner, tables
from tests.harness.attempts import Attempt, Platform, Reference
from tests.harness.cases import Case, chosen, images
from tests.harness.stores import (
    LocalOutput,
    S3Output,
    credentials,
    damaged_checkpoints,
    latest_step,
    report_of,
    result_of,
    s3_endpoint,
)

_NEW_MACHINE = 0.3
"""Share of the attempts that find an empty cache."""

_MOST_ATTEMPTS = 60


@dataclass
class Run:
    """One run, from its first attempt to its end."""

    case: str
    name: str
    attempts: list[Attempt] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Attempts that were interrupted."""
        return sum(attempt.interrupted for attempt in self.attempts)

    def violations(self) -> list[str]:
        """Everything that must not be, with the attempt in which it was seen."""
        seen = [f"attempt {number}: {text}" for number, each in enumerate(self.attempts, 1) for text in each.wrong]
        return [f"{self.name}: {text}" for text in [*seen, *self.wrong]]


class Soak:
    """Runs until enough rounds are done; several threads may take turns."""

    def __init__(self, place: Platform, cases: Sequence[Case], rounds: int, seed: int) -> None:
        self.place, self.cases, self.left, self.seed = place, cases, rounds, seed
        self.runs: list[Run] = []
        self.references: dict[str, Reference] = {}
        self._lock = threading.Lock()

    def refer(self, case: Case) -> None:
        """Run a case undisturbed."""
        self.references[case.name] = attempts.reference(self.place, case)

    def work(self) -> None:
        """Start runs, and see each to its end, as long as rounds are left."""
        while (number := self._next()) is not None:
            self._see_through(self.cases[number % len(self.cases)], number)

    def _next(self) -> int | None:
        with self._lock:
            if self.left <= 0:
                return None
            number = len(self.runs)
            case = self.cases[number % len(self.cases)]
            self.runs.append(Run(case.name, f"{case.name}-{number}"))
            return number

    def _see_through(self, case: Case, number: int) -> None:
        run, reference = self.runs[number], self.references[case.name]
        rng = random.Random(f"{self.seed} {number}")
        machine = 0
        while not (run.attempts and run.attempts[-1].finished):
            if len(run.attempts) >= _MOST_ATTEMPTS:
                run.wrong.append(f"is not finished after {_MOST_ATTEMPTS} attempts")
                return
            machine += rng.random() < _NEW_MACHINE
            stored = latest_step(self.place.output, run.name)
            kill = attempts.plan(rng, reference, stored, case.ranks) if self._take_round() else None
            attempt = attempts.attempt(self.place, case, run.name, machine, kill)
            run.attempts.append(attempt)
            if kill and not attempt.interrupted:
                self._give_back()
            _say(f"{run.name} #{len(run.attempts)}: {attempt.told}")
            if attempt.fatal:
                break
        self._judge(run, case, reference)

    def _judge(self, run: Run, case: Case, reference: Reference) -> None:
        output = self.place.output
        result, report = result_of(output, run.name), report_of(output, run.name)
        if result is None or report is None:
            run.wrong.append("has no result")
            return
        run.wrong += result.differences(reference.result)
        run.wrong += damaged_checkpoints(output, run.name)
        if report["history"][-1]["why"] != reference.why:
            run.wrong.append(f"ended for {report['history'][-1]['why']}, the undisturbed run for {reference.why}")
        again = attempts.attempt(self.place, case, run.name, 0, None)
        if again.code != 0 or "train" in again.phases:
            run.wrong.append(f"was not left alone when it was finished: {again.told}")
        if not run.violations():
            self.place.forget(run.name)

    def _take_round(self) -> bool:
        with self._lock:
            self.left -= 1
            return self.left >= 0

    def _give_back(self) -> None:
        with self._lock:
            self.left += 1


def soak(place: Platform, cases: Sequence[Case], rounds: int, seed: int, jobs: int) -> Soak:
    """The whole soak, `jobs` runs at a time."""
    made = Soak(place, cases, rounds, seed)
    with ThreadPoolExecutor(jobs) as pool:
        for work in [pool.submit(made.refer, case) for case in cases]:
            work.result()
        for work in [pool.submit(made.work) for _ in range(jobs)]:
            work.result()
    return made


@contextmanager
def place(kind: str, logs: Path | None = None) -> Iterator[Platform]:
    """Where a soak runs: a scratch folder and, for "s3", a bucket that holds the data too."""
    with tempfile.TemporaryDirectory(prefix="inat-soak-") as name:
        folder = Path(name)
        archive = images(folder / "data")
        if kind == "local":
            yield Platform(folder, LocalOutput(folder / "runs"), str(archive), archive, runner.environment(), logs)
            return
        with s3_endpoint() as endpoint:
            output = S3Output(endpoint)
            environment = runner.environment(AWS_ENDPOINT_URL=endpoint, **credentials())
            yield Platform(folder, output, output.put("data/images.zip", archive), archive, environment, logs)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", default="a,b", help="parts or names of cases")
    parser.add_argument("--output", choices=("s3", "local"), default="s3")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--json", type=Path, help="file for the summary")
    parser.add_argument("--logs", type=Path, help="folder for what each attempt said")
    options = parser.parse_args()
    with place(options.output, options.logs) as where:
        done = soak(where, chosen(options.parts), options.rounds, options.seed, options.jobs)
    summary = tables.soak_summary(done.runs)
    print(tables.soak_table(done.runs))
    print(json.dumps(summary))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")
    return 1 if summary["violations"] else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
