"""Runs the job through a faulty proxy, one fault in one phase at a time, and judges the outcome.

    python -m tests.harness.matrix [--fault 503,flip] [--phase pull,resume] [--jobs 2] [--json FILE]
        [--logs FOLDER]

The S3 server behind the proxy is moto's, or the one of INAT_TEST_S3_ENDPOINT (with_radosgw.sh sets it). The exit code
is 1 if the result of a run differs from that of an undisturbed one, a checkpoint was lost or a damaged one loaded, an
attempt hung or ended with a wrong code, or a fault never hit.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import runner, warm_jobs
from tests.harness.cases import MATRIX_CASE, with_digest, write_images
from tests.harness.cells import KILLED, Cell, select_cells
from tests.harness.faults import Fault
from tests.harness.proxy import Proxy
from tests.harness.runner import EndedJob, Job
from tests.harness.stores import (
    LocalOutput,
    Result,
    S3Output,
    credentials,
    damaged_checkpoints,
    latest_step,
    report_of,
    result_of,
    s3_endpoint,
)
from tests.harness.tables import markdown_table


@dataclass(frozen=True)
class MatrixSetup:
    """What all cells share: the server, the data, and the result and last step of the undisturbed run."""

    endpoint: str
    folder: Path
    output: S3Output
    data: str
    result: Result
    last_step: int
    logs: Path | None = None


@dataclass
class Outcome:
    """The outcome of a cell."""

    cell: Cell
    happened: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass
class _Trial:
    """A cell in progress: each attempt runs the same command, on a machine that is a cache folder."""

    setup: MatrixSetup
    cell: Cell
    proxy: Proxy
    outcome: Outcome
    machine: int = 0

    def start(self) -> Job:
        folder = self.setup.folder / self.cell.name
        data = self.setup.data.partition("#")[0] if self.cell.phase in ("unproven", "lookup") else self.setup.data
        arguments = _command(data, self.setup.output.uri, folder / f"cache-{self.machine}", self.cell.name)
        environment = runner.job_environment(AWS_ENDPOINT_URL=self.proxy.url, **credentials())
        return Job(arguments, environment, folder / "work", start=warm_jobs.fork_job)

    def finish(self, job: Job) -> EndedJob:
        """Wait for the job's end, and record it."""
        ended = job.end()
        self.outcome.codes.append(ended.code)
        self.outcome.seconds += ended.seconds
        if self.setup.logs:
            ended.append_to_log(self.setup.logs / f"{self.cell.name}.log")
        if ended.hung:
            self.outcome.wrong.append("hung")
        return ended

    def kill_after(self, epoch: int) -> EndedJob:
        """An attempt that is killed after this epoch; the next one runs on another machine."""
        with self.start() as job:
            job.wait_for(lambda event: event.name == "epoch" and event.fields["epoch"] == epoch)
            job.kill(signal.SIGKILL)
            self.outcome.happened.append(f"killed after epoch {epoch}")
            ended = self.finish(job)
        if ended.code != KILLED:
            self.outcome.wrong.append(f"ended with {ended.code} instead of being killed: {ended.last}")
        self.machine += 1
        return ended

    def disturb(self, fault: Fault) -> EndedJob:
        """The attempt that meets the fault."""
        self.proxy.faults.arm(fault)
        if self.cell.phase == "killed":
            return self.kill_after(4)
        with self.start() as job:
            return self.finish(job)

    def damage_at_rest(self, fault: Fault, step: int) -> EndedJob:
        """An attempt whose newest checkpoint is damaged in the store."""
        name = f"checkpoints/{step}.ckpt"
        data = self.setup.output.read(self.cell.name, name) or b""
        self.setup.output.write(self.cell.name, name, data[:-1] + bytes([data[-1] ^ 1]))
        fault.lines.append(name)
        with self.start() as job:
            return self.finish(job)


def run_cell(cell: Cell, setup: MatrixSetup) -> Outcome:
    """Run one cell from the first attempt to the finished run."""
    outcome = Outcome(cell)
    with Proxy(setup.endpoint) as proxy:
        trial = _Trial(setup, cell, proxy, outcome)
        if cell.phase == "resume":
            trial.kill_after(3)
        stored, fault = latest_step(setup.output, cell.name), cell.fault_for(setup.last_step)
        at_rest = (cell.fault, cell.phase) == ("rot", "resume")
        ended = trial.damage_at_rest(fault, stored) if at_rest else trial.disturb(fault)
        _judge_attempt(outcome, ended, fault, stored, latest_step(setup.output, cell.name))
        proxy.faults.clear()
        proxy.wait_until_open()
        if ended.code != 0 and not ended.hung:
            _run_again(trial)
    _judge_run(outcome, setup, stored)
    setup.output.delete(cell.name)
    return outcome


def _run_again(trial: _Trial) -> None:
    """Run the same command without the fault."""
    with trial.start() as job:
        ended = trial.finish(job)
    epochs = len(ended.named("epoch"))
    if ended.code != 0:
        trial.outcome.wrong.append(f"the same command then ended with {ended.code}: {ended.last}")
    if trial.cell.training_kept and epochs:
        trial.outcome.wrong.append(f"{epochs} finished epochs were trained again")


def _judge_attempt(outcome: Outcome, ended: EndedJob, fault: Fault, before: int, after: int) -> None:
    outcome.happened.append(f"{fault.kind} hit {fault.hits} times")
    if not fault.hits:
        outcome.wrong.append("the fault never hit")
    if ended.code not in outcome.cell.codes:
        outcome.wrong.append(f"ended with {ended.code}: {ended.last}")
    elif ended.code > 0:
        outcome.happened.append(ended.last.removeprefix("Error: "))
    if after < before:
        outcome.wrong.append(f"the pointer moved back from step {before} to {after}")


def _judge_run(outcome: Outcome, setup: MatrixSetup, stored: int) -> None:
    """Compare the finished run with the undisturbed one, and check where it was resumed."""
    name = outcome.cell.name
    result, report = result_of(setup.output, name), report_of(setup.output, name)
    if result is None or report is None:
        outcome.wrong.append("there is no result")
        return
    outcome.wrong += result.differences(setup.result)
    # One that rots at rest is left where it is, since perhaps only this machine cannot read it.
    left = f"checkpoints/{stored}.json " if (outcome.cell.fault, outcome.cell.phase) == ("rot", "resume") else None
    outcome.wrong += [text for text in damaged_checkpoints(setup.output, name) if not (left and text.startswith(left))]
    resumed_from = report["history"][-1]["started_step"]
    if outcome.cell.phase == "resume":
        outcome.happened.append(f"resumed from step {resumed_from} of {stored} stored")
        if resumed_from == 0:
            outcome.wrong.append("started again although there was a checkpoint")
        if outcome.cell.fault == "rot" and resumed_from == stored:
            outcome.wrong.append("resumed from a damaged checkpoint")


def _command(data: str, output: str, cache: Path, run: str) -> list[str]:
    return MATRIX_CASE.arguments(data, output, cache, run)


@contextmanager
def matrix_setup(logs: Path | None = None) -> Iterator[MatrixSetup]:
    """The server, the data in it, and the undisturbed run."""
    with tempfile.TemporaryDirectory(prefix="inat-matrix-") as name, s3_endpoint() as endpoint:
        folder, output = Path(name), S3Output(endpoint)
        archive = write_images(folder / "data")
        data = with_digest(output.put("data/images.zip", archive), archive)
        undisturbed = LocalOutput(folder / "undisturbed")  # no store is involved
        ended = runner.run(
            _command(str(archive), undisturbed.uri, folder / "cache", "r"), runner.job_environment(), folder
        )
        result, last = result_of(undisturbed, "r"), latest_step(undisturbed, "r")
        if ended.code != 0 or result is None:
            raise RuntimeError(f"The undisturbed run ended with {ended.code}: {ended.last}")
        yield MatrixSetup(endpoint, folder, output, data, result, last, logs)


def table(outcomes: Sequence[Outcome]) -> str:
    """The matrix as a table for people."""
    heads = ("fault", "phase", "what happened", "exit codes", "seconds", "verdict")
    return markdown_table(heads, [_row(each) for each in outcomes])


def _row(each: Outcome) -> tuple[str, ...]:
    verdict = "WRONG: " + "; ".join(each.wrong) if each.wrong else "same result"
    codes = ", ".join(map(str, each.codes))
    return each.cell.fault, each.cell.phase, "; ".join(each.happened), codes, f"{each.seconds:.0f}", verdict


def _is_impossible(cell: Cell) -> bool:
    """Whether the store makes this cell impossible: a real one refuses bytes that do not match their digest."""
    return cell.fault == "rot" and cell.phase != "resume" and "INAT_TEST_S3_ENDPOINT" in os.environ


def _run_and_print(cell: Cell, setup: MatrixSetup) -> Outcome:
    outcome = run_cell(cell, setup)
    print(table([outcome]).splitlines()[-1], file=sys.stderr, flush=True)
    return outcome


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", default="", help="faults, separated by commas; all by default")
    parser.add_argument("--phase", default="", help="phases, separated by commas; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    parser.add_argument("--logs", type=Path, help="folder for the log of each attempt")
    options = parser.parse_args()
    split = [[word for word in text.split(",") if word] for text in (options.fault, options.phase)]
    wanted = [cell for cell in select_cells(*split) if not _is_impossible(cell)]
    with matrix_setup(options.logs) as setup, ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(lambda cell: _run_and_print(cell, setup), wanted))
    wrong = [each.cell.name for each in outcomes if each.wrong]
    print(table(outcomes))
    print(f"\n{len(outcomes)} cells, {len(wrong)} wrong{': ' + ', '.join(wrong) if wrong else ''}")
    if options.json:
        options.json.write_text(json.dumps([vars(each) | {"cell": vars(each.cell)} for each in outcomes], indent=2))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
