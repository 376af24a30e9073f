"""Kills runs at random moments, resumes them, and demands of each exactly the result of an undisturbed run.

    python -m tests.harness.soak --rounds 100 --seed 0 [--parts a,b] [--output s3|gs|az|local] [--jobs 2]
        [--json FILE] [--logs FOLDER]

A round is one interrupted attempt. The exit code is 1 if the result of a run differs from its reference, or if an
attempt hung, ended with a wrong code, or lost more work than the time between two checkpoints and one save.
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
from tests.harness.attempts import Attempt, Reference, SoakSetup
from tests.harness.cases import Case, select_cases, write_images
from tests.harness.cloud_stores import cloud_output
from tests.harness.stores import (
    LocalOutput,
    damaged_checkpoints,
    latest_step,
    report_of,
    result_of,
)

_NEW_MACHINE = 0.3
"""Share of the attempts that start with an empty cache."""

_MAX_ATTEMPTS = 60


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
        """Everything that must not happen, with the attempt in which it did."""
        in_attempts = [
            f"attempt {number}: {text}" for number, each in enumerate(self.attempts, 1) for text in each.wrong
        ]
        return [f"{self.name}: {text}" for text in [*in_attempts, *self.wrong]]


class Soak:
    """Runs that go on until enough rounds are done; several threads may work on them."""

    def __init__(self, setup: SoakSetup, cases: Sequence[Case], rounds: int, seed: int) -> None:
        self.setup, self.cases, self.left, self.seed = setup, cases, rounds, seed
        self.runs: list[Run] = []
        self.references: dict[str, Reference] = {}
        self._lock = threading.Lock()
        self._reference_locks = {case.name: threading.Lock() for case in cases}

    def work(self) -> None:
        """Start runs, and bring each to its end, as long as rounds are left."""
        while (number := self._next()) is not None:
            self._finish_run(self.cases[number % len(self.cases)], number)

    def _next(self) -> int | None:
        with self._lock:
            if self.left <= 0:
                return None
            number = len(self.runs)
            case = self.cases[number % len(self.cases)]
            self.runs.append(Run(case.name, f"{case.name}-{number}"))
            return number

    def _finish_run(self, case: Case, number: int) -> None:
        run, reference = self.runs[number], self._reference(case)
        rng = random.Random(f"{self.seed} {number}")
        machine = 0
        while not (run.attempts and run.attempts[-1].finished):
            if len(run.attempts) >= _MAX_ATTEMPTS:
                run.wrong.append(f"is not finished after {_MAX_ATTEMPTS} attempts")
                return
            machine += rng.random() < _NEW_MACHINE
            stored = latest_step(self.setup.output, run.name)
            kill = attempts.plan_kill(rng, reference, stored, case.ranks) if self._take_round() else None
            attempt = attempts.run_attempt(self.setup, case, run.name, machine, kill)
            run.attempts.append(attempt)
            if kill and not attempt.interrupted:
                self._give_back()
            _log(f"{run.name} #{len(run.attempts)}: {attempt.description}")
            if attempt.fatal:
                break
        self._judge(run, case, reference)

    def _reference(self, case: Case) -> Reference:
        """The undisturbed run of a case, when its first run needs it: a short soak does not come to all cases."""
        with self._reference_locks[case.name]:
            if case.name not in self.references:
                self.references[case.name] = attempts.run_reference(self.setup, case)
            return self.references[case.name]

    def _judge(self, run: Run, case: Case, reference: Reference) -> None:
        output = self.setup.output
        result, report = result_of(output, run.name), report_of(output, run.name)
        if result is None or report is None:
            run.wrong.append("has no result")
            return
        run.wrong += result.differences(reference.result)
        run.wrong += damaged_checkpoints(output, run.name)
        if report["history"][-1]["why"] != reference.why:
            run.wrong.append(f"ended for {report['history'][-1]['why']}, the undisturbed run for {reference.why}")
        again = attempts.run_attempt(self.setup, case, run.name, 0, None)
        if again.code != 0 or "train" in again.phases:
            run.wrong.append(f"was not left alone after it had finished: {again.description}")
        if not run.violations():
            self.setup.delete(run.name)

    def _take_round(self) -> bool:
        with self._lock:
            self.left -= 1
            return self.left >= 0

    def _give_back(self) -> None:
        with self._lock:
            self.left += 1


def soak(setup: SoakSetup, cases: Sequence[Case], rounds: int, seed: int, jobs: int) -> Soak:
    """The whole soak, `jobs` runs at a time."""
    made = Soak(setup, cases, rounds, seed)
    with ThreadPoolExecutor(jobs) as pool:
        for work in [pool.submit(made.work) for _ in range(jobs)]:
            work.result()
    return made


@contextmanager
def soak_setup(kind: str, logs: Path | None = None) -> Iterator[SoakSetup]:
    """Where a soak runs: a scratch folder and, but for "local", a bucket that also holds the data."""
    with tempfile.TemporaryDirectory(prefix="inat-soak-") as name:
        folder = Path(name)
        archive = write_images(folder / "data")
        if kind == "local":
            yield SoakSetup(folder, LocalOutput(folder / "runs"), str(archive), archive, runner.job_environment(), logs)
            return
        with cloud_output(kind, folder) as (output, variables):
            environment = runner.job_environment(**variables)
            yield SoakSetup(folder, output, output.put("data/images.zip", archive), archive, environment, logs)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", default="a,b", help="parts, or names of cases")
    parser.add_argument("--output", choices=("s3", "gs", "az", "local"), default="s3")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--json", type=Path, help="file for the summary")
    parser.add_argument("--logs", type=Path, help="folder for the log of each attempt")
    options = parser.parse_args()
    with soak_setup(options.output, options.logs) as setup:
        done = soak(setup, select_cases(options.parts), options.rounds, options.seed, options.jobs)
    summary = tables.soak_summary(done.runs)
    print(tables.soak_table(done.runs))
    print(json.dumps(summary))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n")
    return 1 if summary["violations"] else 0


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
