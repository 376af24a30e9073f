"""Runs the job through a faulty proxy, one fault in one phase at a time, and says what became of it.

    python -m tests.harness.matrix [--fault 503,flip] [--phase pull,resume] [--jobs 2] [--json FILE]
        [--logs FOLDER]

The S3 server behind the proxy is moto's, or the one that INAT_TEST_S3_ENDPOINT names (with_radosgw.sh sets it). Ends
with 1 when a run came to another result than an undisturbed one, a checkpoint was lost or a damaged one believed, an
attempt hung or ended with another code than it may, or a fault never hit.
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

from tests.harness import runner
from tests.harness.cases import MATRIX_CASE, images, with_digest
from tests.harness.cells import KILLED, Cell, cells
from tests.harness.faults import Fault
from tests.harness.proxy import Proxy
from tests.harness.runner import Ended, Job
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
from tests.harness.tables import markdown


@dataclass(frozen=True)
class Lab:
    """What all cells share: the server, the data, and the undisturbed run's result and last step."""

    endpoint: str
    folder: Path
    output: S3Output
    data: str
    result: Result
    last_step: int
    logs: Path | None = None


@dataclass
class Outcome:
    """What became of a cell."""

    cell: Cell
    happened: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


@dataclass
class _Trial:
    """A cell under way: each attempt runs the same command on a machine, which is a cache folder."""

    lab: Lab
    cell: Cell
    proxy: Proxy
    outcome: Outcome
    machine: int = 0

    def start(self) -> Job:
        folder = self.lab.folder / self.cell.name
        arguments = _command(self.lab.data, self.lab.output.uri, folder / f"cache-{self.machine}", self.cell.name)
        environment = runner.environment(AWS_ENDPOINT_URL=self.proxy.url, **credentials())
        return Job(arguments, environment, folder / "work")

    def finish(self, job: Job) -> Ended:
        """Wait for the end, and note it."""
        ended = job.end()
        self.outcome.codes.append(ended.code)
        self.outcome.seconds += ended.seconds
        if self.lab.logs:
            ended.log(self.lab.logs / f"{self.cell.name}.log")
        if ended.hung:
            self.outcome.wrong.append("hung")
        return ended

    def killed_after(self, epoch: int) -> Ended:
        """An attempt that is killed after so many epochs; the next one runs elsewhere."""
        with self.start() as job:
            job.wait_for(lambda event: event.name == "epoch" and event.fields["epoch"] == epoch)
            job.kill(signal.SIGKILL)
            self.outcome.happened.append(f"killed after epoch {epoch}")
            ended = self.finish(job)
        if ended.code != KILLED:
            self.outcome.wrong.append(f"ended with {ended.code} instead of being killed: {ended.last}")
        self.machine += 1
        return ended

    def disturbed(self, fault: Fault) -> Ended:
        """The attempt that the fault is about."""
        self.proxy.faults.arm(fault)
        if self.cell.phase == "killed":
            return self.killed_after(4)
        with self.start() as job:
            return self.finish(job)

    def spoiled(self, fault: Fault, step: int) -> Ended:
        """An attempt whose newest checkpoint was damaged where it lies."""
        name = f"checkpoints/{step}.ckpt"
        data = self.lab.output.read(self.cell.name, name) or b""
        self.lab.output.write(self.cell.name, name, data[:-1] + bytes([data[-1] ^ 1]))
        fault.lines.append(name)
        with self.start() as job:
            return self.finish(job)


def run_cell(cell: Cell, lab: Lab) -> Outcome:
    """Try one cell from the first attempt to a finished run."""
    outcome = Outcome(cell)
    with Proxy(lab.endpoint) as proxy:
        trial = _Trial(lab, cell, proxy, outcome)
        if cell.phase == "resume":
            trial.killed_after(3)
        stored, fault = latest_step(lab.output, cell.name), cell.make(lab.last_step)
        at_rest = (cell.fault, cell.phase) == ("rot", "resume")
        ended = trial.spoiled(fault, stored) if at_rest else trial.disturbed(fault)
        _judge_attempt(outcome, ended, fault, stored, latest_step(lab.output, cell.name))
        proxy.faults.clear()
        proxy.wait_until_open()
        if ended.code != 0 and not ended.hung:
            _again(trial)
    _judge_run(outcome, lab, stored)
    lab.output.delete(cell.name)
    return outcome


def _again(trial: _Trial) -> None:
    """The same command, the fault being gone."""
    with trial.start() as job:
        ended = trial.finish(job)
    epochs = len(ended.named("epoch"))
    if ended.code != 0:
        trial.outcome.wrong.append(f"the same command ended with {ended.code} then: {ended.last}")
    if trial.cell.kept and epochs:
        trial.outcome.wrong.append(f"{epochs} epochs that were done had to be trained again")


def _judge_attempt(outcome: Outcome, ended: Ended, fault: Fault, before: int, after: int) -> None:
    outcome.happened.append(f"{fault.kind} hit {fault.hits} times")
    if not fault.hits:
        outcome.wrong.append("the fault never hit")
    if ended.code not in outcome.cell.codes:
        outcome.wrong.append(f"ended with {ended.code}: {ended.last}")
    elif ended.code > 0:
        outcome.happened.append(ended.last.removeprefix("Error: "))
    if after < before:
        outcome.wrong.append(f"the pointer went back from step {before} to {after}")


def _judge_run(outcome: Outcome, lab: Lab, stored: int) -> None:
    """Whether the finished run is the undisturbed one, and went on from where it should."""
    name = outcome.cell.name
    result, report = result_of(lab.output, name), report_of(lab.output, name)
    if result is None or report is None:
        outcome.wrong.append("there is no result")
        return
    outcome.wrong += result.differences(lab.result)
    outcome.wrong += damaged_checkpoints(lab.output, name)
    went_on = report["history"][-1]["started_step"]
    if outcome.cell.phase == "resume":
        outcome.happened.append(f"went on from step {went_on} of {stored} stored")
        if went_on == 0:
            outcome.wrong.append("began anew though a checkpoint was there")
        if outcome.cell.fault == "rot" and went_on >= stored:
            outcome.wrong.append("went on from a damaged checkpoint")


def _command(data: str, output: str, cache: Path, run: str) -> list[str]:
    return MATRIX_CASE.arguments(data, output, cache, run)


@contextmanager
def lab(logs: Path | None = None) -> Iterator[Lab]:
    """The server, the data in it, and the undisturbed run."""
    with tempfile.TemporaryDirectory(prefix="inat-matrix-") as name, s3_endpoint() as endpoint:
        folder, output = Path(name), S3Output(endpoint)
        archive = images(folder / "data")
        data = with_digest(output.put("data/images.zip", archive), archive)
        calm = LocalOutput(folder / "calm")  # no store has a part in it
        ended = runner.run(_command(str(archive), calm.uri, folder / "cache", "r"), runner.environment(), folder)
        result, last = result_of(calm, "r"), latest_step(calm, "r")
        if ended.code != 0 or result is None:
            raise RuntimeError(f"The undisturbed run ended with {ended.code}: {ended.last}")
        yield Lab(endpoint, folder, output, data, result, last, logs)


def table(outcomes: Sequence[Outcome]) -> str:
    """The matrix for people."""
    heads = ("fault", "phase", "what happened", "exit codes", "seconds", "verdict")
    return markdown(heads, [_row(each) for each in outcomes])


def _row(each: Outcome) -> tuple[str, ...]:
    verdict = "WRONG: " + "; ".join(each.wrong) if each.wrong else "same result"
    codes = ", ".join(map(str, each.codes))
    return each.cell.fault, each.cell.phase, "; ".join(each.happened), codes, f"{each.seconds:.0f}", verdict


def _not_here(cell: Cell) -> bool:
    """A real store refuses bytes that do not have their digest, whoever spoils them."""
    return cell.fault == "rot" and cell.phase != "resume" and "INAT_TEST_S3_ENDPOINT" in os.environ


def _try(cell: Cell, shared: Lab) -> Outcome:
    outcome = run_cell(cell, shared)
    print(table([outcome]).splitlines()[-1], file=sys.stderr, flush=True)
    return outcome


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", default="", help="faults, separated by commas; by default all")
    parser.add_argument("--phase", default="", help="phases, separated by commas; by default all")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    parser.add_argument("--logs", type=Path, help="folder for what each attempt said")
    options = parser.parse_args()
    split = [[word for word in text.split(",") if word] for text in (options.fault, options.phase)]
    wanted = [cell for cell in cells(*split) if not _not_here(cell)]
    with lab(options.logs) as shared, ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(lambda cell: _try(cell, shared), wanted))
    wrong = [each.cell.name for each in outcomes if each.wrong]
    print(table(outcomes))
    print(f"\n{len(outcomes)} cells, {len(wrong)} wrong{': ' + ', '.join(wrong) if wrong else ''}")
    if options.json:
        options.json.write_text(json.dumps([vars(each) | {"cell": vars(each.cell)} for each in outcomes], indent=2))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
