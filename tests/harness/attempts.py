"""One attempt at a run, killed or not, and what must hold of every attempt however it ended."""

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
from tests.harness.runner import Ended, Job
from tests.harness.stores import LocalOutput, Output, Result, latest_step, report_of, result_of

PREEMPTED, TRANSIENT = 143, 75
_STORED = re.compile(r"step (\d+) is stored")


@dataclass(frozen=True)
class Platform:
    """Where runs are tried: a scratch folder, the output, the data's URI and the job's environment; `archive` is the
    data on this machine."""

    folder: Path
    output: Output
    data: str
    archive: Path
    environment: Mapping[str, str]
    logs: Path | None = None

    def forget(self, run: str) -> None:
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
    """What came of one attempt. `fatal` says that going on makes no sense."""

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
        return self.code == 0

    @property
    def interrupted(self) -> bool:
        """Whether the kill came before the end."""
        return self.signalled and self.code != 0

    @property
    def fatal(self) -> bool:
        return self.hung or self.code not in (0, PREEMPTED, TRANSIENT, -signal.SIGKILL, -signal.SIGTERM)

    @property
    def phase(self) -> str:
        """The phase that it ended in."""
        return self.phases[-1] if self.phases else "import"

    @property
    def told(self) -> str:
        """In a line."""
        kill = self.kill.told if self.kill else "undisturbed"
        lost = f", lost {self.loss.seconds:.2f} s" if self.interrupted else ""
        wrong = "".join(f"; WRONG: {text}" for text in self.wrong)
        return f"{kill}: code {self.code} in {self.phase} after {self.seconds:.1f} s{lost}{wrong}"


def reference(place: Platform, case: Case) -> Reference:
    """Run a case undisturbed, from and to folders of this machine, so that no store has a part in it.

    Raises RuntimeError when it does not end well.
    """
    folder = place.folder / f"{case.name}-reference"
    output = LocalOutput(folder / "runs")
    command = case.arguments(str(place.archive), output.uri, folder / "cache", "r")
    ended = runner.run(command, place.environment, folder)
    result, report = result_of(output, "r"), report_of(output, "r")
    if ended.code != 0 or result is None or report is None:
        raise RuntimeError(f"The undisturbed run of {case.name} ended with {ended.code}: {ended.last}")
    begun = next(event.at for event in ended.named("phase") if event.fields["phase"] == "train")
    known = Reference(result, report["history"][-1]["why"], latest_step(output, "r"), begun, ended.seconds)
    shutil.rmtree(folder)
    return known


def plan(rng: random.Random, known: Reference, stored: int, ranks: int) -> Kill:
    """A kill for the next attempt, in which `ranks` have to do what comes after the step `stored`."""
    left = (known.seconds - known.startup) * (1 - min(stored, known.steps) / known.steps)
    return kills.draw(rng, known.startup, known.startup + left, ranks)


def attempt(place: Platform, case: Case, run: str, machine: int, kill: Kill | None) -> Attempt:
    """Start the run's command on a machine, which is a cache folder, and look at what it leaves."""
    before = latest_step(place.output, run)
    with Job(_command(place, case, run, machine), place.environment, place.folder / run / "work") as job:
        ended = kills.carry_out(kill, job) if kill else job.end()
    if place.logs:
        ended.log(place.logs / f"{run}.log")
    after = latest_step(place.output, run)
    loss = losses.loss_of(ended, before, after)
    wrong = [*_wrong_end(ended, kill, after), *_wrong_loss(ended, kill, case, loss)]
    if after < before:
        wrong.append(f"the pointer went back from step {before} to {after}")
    signalled = ended.signalled is not None
    return Attempt(ended.code, ended.seconds, kill, ended.phases(), loss, ended.last, ended.hung, signalled, wrong)


def _command(place: Platform, case: Case, run: str, machine: int) -> list[str]:
    return case.arguments(place.data, place.output.uri, place.folder / run / f"cache-{machine}", run)


def _wrong_end(ended: Ended, kill: Kill | None, stored: int) -> list[str]:
    """Whether the code is one that such a kill may leave, and the last line true."""
    allowed = {0}
    if kill and kill.rank is not None and ended.signalled is not None:
        allowed |= {TRANSIENT}
    elif kill and ended.signalled is not None:
        allowed |= {PREEMPTED} if kill.number is signal.SIGTERM else set()
        allowed |= set() if kill.gentle else {-int(signal.SIGKILL)}
        # Python needs a moment until the job can catch a signal at all.
        allowed |= {-int(kill.number)} if not ended.events else set()
    wrong = ["hung"] if ended.hung else []
    if ended.code not in allowed:
        wrong.append(f"ended with {ended.code}: {ended.last}")
    said = _STORED.search(ended.last) if ended.code == PREEMPTED else None
    if said and int(said[1]) != stored:
        wrong.append(f"says that step {said[1]} is stored, and the pointer names {stored}")
    return wrong


def _wrong_loss(ended: Ended, kill: Kill | None, case: Case, loss: Loss) -> list[str]:
    if kill is None or ended.signalled is None or ended.code == 0:
        return []
    most = losses.SLACK_S if ended.code == PREEMPTED else losses.bound(case.minutes, loss.save)
    return [f"lost {loss.seconds:.2f} s, more than {most:.2f} s"] if loss.seconds > most else []
