"""One attempt at a run, killed or not, and what must hold for every attempt however it ended."""

import random
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import kills, losses, runner
from tests.harness.cases import Case
from tests.harness.kills import Kill
from tests.harness.losses import Loss
from tests.harness.runner import EndedJob, Job
from tests.harness.stores import LocalOutput, Output, Result, latest_step, report_of, result_of

PREEMPTED, TRANSIENT = 143, 75
_STORED = re.compile(r"step (\d+) is stored")


@dataclass(frozen=True)
class SoakSetup:
    """Where runs are tried: a scratch folder, the output, the URI of the data and the job's environment; `archive` is
    the data on this machine."""

    folder: Path
    output: Output
    data: str
    archive: Path
    environment: Mapping[str, str]
    logs: Path | None = None

    def delete(self, run: str) -> None:
        """Delete a run and its caches."""
        self.output.delete(run)
        shutil.rmtree(self.folder / run, ignore_errors=True)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its result, why it ended and at which step, its seconds until it trained and in all."""

    result: Result
    why: str
    steps: int
    startup: float
    seconds: float


@dataclass(frozen=True)
class Attempt:
    """The outcome of one attempt; `wrong` is what must not have happened."""

    code: int
    seconds: float
    kill: Kill | None
    phases: Sequence[str]
    loss: Loss
    last: str
    hung: bool = False
    signalled: bool = False
    wrong: Sequence[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.code == 0

    @property
    def interrupted(self) -> bool:
        """Whether the kill came before the end."""
        return self.signalled and self.code != 0

    @property
    def fatal(self) -> bool:
        """Whether another attempt makes no sense."""
        return self.hung or self.code not in (0, PREEMPTED, TRANSIENT, -signal.SIGKILL, -signal.SIGTERM)

    @property
    def phase(self) -> str:
        """The phase in which it ended."""
        return self.phases[-1] if self.phases else "import"

    @property
    def description(self) -> str:
        """One line for the log."""
        kill = self.kill.description if self.kill else "undisturbed"
        lost = f", lost {self.loss.seconds:.2f} s" if self.interrupted else ""
        wrong = "".join(f"; WRONG: {text}" for text in self.wrong)
        return f"{kill}: code {self.code} in {self.phase} after {self.seconds:.1f} s{lost}{wrong}"


def run_reference(setup: SoakSetup, case: Case) -> Reference:
    """Run a case undisturbed, with data and output in folders of this machine, so that no store is involved.

    Raises RuntimeError if it fails.
    """
    folder = setup.folder / f"{case.name}-reference"
    output = LocalOutput(folder / "runs")
    command = case.arguments(str(setup.archive), output.uri, folder / "cache", "r")
    ended = runner.run(command, setup.environment, folder)
    result, report = result_of(output, "r"), report_of(output, "r")
    if ended.code != 0 or result is None or report is None:
        raise RuntimeError(f"The undisturbed run of {case.name} ended with {ended.code}: {ended.last}")
    startup = next(event.at for event in ended.named("phase") if event.fields["phase"] == "train")
    reference = Reference(result, report["history"][-1]["why"], latest_step(output, "r"), startup, ended.seconds)
    shutil.rmtree(folder)
    return reference


def plan_kill(rng: random.Random, reference: Reference, stored: int, ranks: int) -> Kill:
    """A kill for the next attempt, in which `ranks` processes have to do what comes after the step `stored`."""
    left = (reference.seconds - reference.startup) * (1 - min(stored, reference.steps) / reference.steps)
    return kills.draw_kill(rng, reference.startup, reference.startup + left, ranks)


def run_attempt(setup: SoakSetup, case: Case, run: str, machine: int, kill: Kill | None) -> Attempt:
    """Start the run's command, kill it, and judge what is left; a machine is a cache folder."""
    before = latest_step(setup.output, run)
    with Job(_command(setup, case, run, machine), setup.environment, setup.folder / run / "work") as job:
        ended = kills.execute(kill, job) if kill else job.end()
    if setup.logs:
        ended.append_to_log(setup.logs / f"{run}.log")
    after = latest_step(setup.output, run)
    loss = losses.measure_loss(ended, before, after)
    wrong = [*_wrong_end(ended, kill, after), *_wrong_loss(ended, kill, case, loss)]
    if after < before:
        wrong.append(f"the pointer moved back from step {before} to {after}")
    signalled = ended.signalled is not None
    return Attempt(ended.code, ended.seconds, kill, ended.phases(), loss, ended.last, ended.hung, signalled, wrong)


def _command(setup: SoakSetup, case: Case, run: str, machine: int) -> list[str]:
    return case.arguments(setup.data, setup.output.uri, setup.folder / run / f"cache-{machine}", run)


def _wrong_end(ended: EndedJob, kill: Kill | None, stored: int) -> list[str]:
    """What is wrong with the exit code and the last line, after such a kill."""
    allowed = {0}
    if kill and kill.rank is not None and ended.signalled is not None:
        allowed |= {TRANSIENT}
    elif kill and ended.signalled is not None:
        allowed |= {PREEMPTED} if kill.number is signal.SIGTERM else set()
        allowed |= set() if kill.gentle else {-int(signal.SIGKILL)}
        # It takes Python a moment until the job can catch a signal at all.
        allowed |= {-int(kill.number)} if not ended.events else set()
    wrong = ["hung"] if ended.hung else []
    if ended.code not in allowed:
        wrong.append(f"ended with {ended.code}: {ended.last}")
    claimed = _STORED.search(ended.last) if ended.code == PREEMPTED else None
    if claimed and int(claimed[1]) != stored:
        wrong.append(f"reports that step {claimed[1]} is stored, and the pointer names {stored}")
    return wrong


def _wrong_loss(ended: EndedJob, kill: Kill | None, case: Case, loss: Loss) -> list[str]:
    if kill is None or ended.signalled is None or ended.code == 0:
        return []
    is_preempted = ended.code == PREEMPTED
    most = losses.SLACK_S if is_preempted else losses.largest_loss(case.checkpoint_minutes, loss.save)
    return [f"lost {loss.seconds:.2f} s, more than {most:.2f} s"] if loss.seconds > most else []
