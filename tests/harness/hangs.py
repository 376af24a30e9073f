"""Stops jobs whose data or output store hangs, in every phase, and measures how long each takes to end.

    python -m tests.harness.hangs --rounds 100 --seed 0 [--phase pull,checkpoint] [--jobs 2] [--json FILE]
        [--logs FOLDER]

A store hangs in one of three ways: it takes requests and never answers, it stops in the middle of a body, or it answers
no connection at all. A round waits until a request of the phase meets that, and sends SIGTERM a moment later. The exit
code is 1 if a job ends with another code than 143, later than 2 s or, where a checkpoint has to be stored, later than
--grace-seconds, or if the same command does not go on from what it had, to the result of an undisturbed run.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import runner, stores, warm_jobs
from tests.harness.attempts import PREEMPTED
from tests.harness.cases import HANG_CASE, HANG_GRACE_S, WEIGHTS_HANG_CASE
from tests.harness.faults import LIST, Fault
from tests.harness.made_images import tree, write_folder, write_zip
from tests.harness.proxy import Proxy
from tests.harness.runner import EndedJob, Job
from tests.harness.stores import LocalOutput, Result, S3Output
from tests.harness.tables import markdown_table

AT_ONCE_S = 2.0
"""Seconds to the end of a job that has no checkpoint to store."""

_FOREVER_S = 600.0
_ZIP, _LOOSE, _RUN = r"[^ ]*/data/images\.zip", r"[^ ]*/loose/", r" /[^/]+/runs/[^/]+"


@dataclass(frozen=True)
class Phase:
    """Requests whose answers hang: from the first one that matches `trigger` on, all that match `match`.

    `data` is the data set that the job reads: a zip in the bucket or at a web address, or loose files. `kinds` are the
    ways to hang. `resumes` is for requests that only a resumed run makes, `stores` for a job that has a checkpoint to
    store or a result that it must not lose.
    """

    name: str
    trigger: str
    match: str = _RUN
    data: str = "zip"
    kinds: Sequence[str] = ("silent", "stall", "deaf")
    resumes: bool = False
    stores: bool = False


PHASES = (
    Phase("data, lookup", f"^HEAD {_ZIP}", _ZIP, kinds=("silent", "deaf")),
    Phase("data, pull", f"^GET {_ZIP}", _ZIP),
    Phase("data, pull, https", f"^GET {_ZIP}", _ZIP, "web"),
    Phase("data, listing", rf"^{LIST}.*prefix=loose", "", "loose"),
    Phase("data, prepare", f"^GET {_LOOSE}", _LOOSE, "loose"),
    Phase("weights", r"/weights\.safetensors", r"/weights\.safetensors", kinds=("silent", "deaf")),
    Phase("output, start", rf"^(GET|HEAD){_RUN}/config\.json", ""),
    Phase("output, lease", rf"^(PUT|POST){_RUN}/attempts/", ""),
    Phase("output, resume", rf"^(GET|HEAD){_RUN}/checkpoints/", "", resumes=True),
    Phase("output, earlier checkpoints", rf"^(PUT|POST|DELETE){_RUN}/checkpoints/", "", resumes=True, stores=True),
    Phase("output, checkpoint", rf"^(PUT|POST){_RUN}/checkpoints/", "", stores=True),
    Phase("output, result", rf"^(PUT|POST){_RUN}/(model|plots|report)", ""),
)


@dataclass(frozen=True)
class HangSetup:
    """The server, the data in it, the folder of a warm cache, and the result of the undisturbed run."""

    endpoint: str
    folder: Path
    output: S3Output
    environment: Mapping[str, str]
    result: Result
    logs: Path | None = None


@dataclass
class Stopped:
    """The outcome of a round: seconds from SIGTERM to the end, and what was wrong."""

    phase: str
    kind: str
    seconds: float = 0.0
    code: int = 0
    where: str = ""
    wrong: list[str] = field(default_factory=list)


def run_round(setup: HangSetup, number: int, phase: Phase, kind: str, delay: float) -> Stopped:
    """Stop a job `delay` seconds after a request of the phase hangs; judge its end, and what the next attempt finds."""
    done, run, folder = Stopped(phase.name, kind), f"r{number}", setup.folder / f"r{number}"
    if phase.name.startswith("output"):
        shutil.copytree(setup.folder / "cache", folder / "cache")
    if phase.resumes:
        _interrupt(setup, run)
    with Proxy(setup.endpoint) as proxy:
        fault = proxy.faults.arm(_fault(phase, kind))
        with _job(setup, phase, run, proxy.url, _data(setup, phase, proxy)) as job:
            while not fault.hits and job.sleep_until(job.age + 0.02):
                pass
            if not job.sleep_until(job.age + delay) or not job.kill(signal.SIGTERM):
                done.wrong.append("ended before it was stopped")
            if not phase.stores and job.sleep_until(job.age + AT_ONCE_S):
                job.kill(signal.SIGUSR1)  # the log then shows where its threads wait
            ended = job.end()
    _judge(done, phase, ended)
    if setup.logs:
        ended.append_to_log(setup.logs / f"{number}-{phase.name.replace(', ', '-')}-{kind}.log")
    if not done.wrong and phase.name in ("output, checkpoint", "output, result"):
        _finish(setup, done, phase, run, ended)
    if not done.wrong:
        setup.output.delete(run)
        shutil.rmtree(folder)
    return done


def _fault(phase: Phase, kind: str) -> Fault:
    if kind == "deaf":
        return Fault("deaf", phase.trigger, times=1)
    return Fault("latency" if kind == "silent" else kind, phase.match, phase.trigger, amount=_FOREVER_S)


def _data(setup: HangSetup, phase: Phase, proxy: Proxy) -> str:
    if phase.name.startswith("output"):
        return str(setup.folder / "images.zip")
    bucket = setup.output.bucket
    return {
        "zip": f"s3://{bucket}/data/images.zip",
        "web": f"{proxy.url}/{bucket}/data/images.zip",
        "loose": f"s3://{bucket}/loose",
    }[phase.data]


def _job(setup: HangSetup, phase: Phase, run: str, endpoint: str, data: str) -> Job:
    folder = setup.folder / run
    case = WEIGHTS_HANG_CASE if phase.name == "weights" else HANG_CASE
    command = case.arguments(data, setup.output.uri, folder / "cache", run)
    if phase.name == "weights":
        command += ["--weights", f"s3://{setup.output.bucket}/weights.safetensors"]
    environment = {**setup.environment, "AWS_ENDPOINT_URL": endpoint}
    return Job(command, environment, folder / "work", start=warm_jobs.fork_job)


def _interrupt(setup: HangSetup, run: str) -> None:
    """An attempt of another machine, which is stopped with a checkpoint stored."""
    cache = setup.folder / run / "other-cache"
    shutil.copytree(setup.folder / "cache", cache)
    command = HANG_CASE.arguments(str(setup.folder / "images.zip"), setup.output.uri, cache, run)
    with Job(command, setup.environment, setup.folder / run / "work", start=warm_jobs.fork_job) as job:
        job.wait_for(lambda event: event.name == "checkpoint")
        job.kill(signal.SIGTERM)
        job.end()


def _judge(done: Stopped, phase: Phase, ended: EndedJob) -> None:
    done.code, done.where = ended.code, (ended.phases() or ["import"])[-1]
    done.seconds = ended.seconds - (ended.signalled or ended.seconds)
    most = HANG_GRACE_S if phase.stores else AT_ONCE_S
    if ended.code != PREEMPTED:
        done.wrong.append(f"ended with {ended.code}: {ended.last}")
    if done.seconds > most:
        done.wrong.append(f"ended after {done.seconds:.2f} s, more than {most:g} s, in {done.where}")


def _finish(setup: HangSetup, done: Stopped, phase: Phase, run: str, ended: EndedJob) -> None:
    """The same command on the same machine must go on from what the stopped job has logged, and end as undisturbed."""
    with _job(setup, phase, run, setup.endpoint, str(setup.folder / "images.zip")) as job:
        again = job.end()
    reached = max((event.step for event in ended.events if event.name in ("checkpoint", "epoch")), default=0)
    resumed = max((event.step for event in again.named("resume")), default=0)
    result = stores.result_of(setup.output, run)
    if again.code != 0:
        done.wrong.append(f"the same command then ended with {again.code}: {again.last}")
    if resumed < max(reached, 1):
        done.wrong.append(f"went on from step {resumed}, though step {reached} was reached")
    done.wrong += result.differences(setup.result) if result else ["has no result"]


@contextmanager
def hang_setup(logs: Path | None = None) -> Iterator[HangSetup]:
    """A server with the data, and an undisturbed run."""
    with tempfile.TemporaryDirectory(prefix="inat-hangs-") as name, stores.moto_server() as endpoint:
        folder, output, files = Path(name), S3Output(endpoint), tree(train=24, test=4)
        archive = write_zip(folder / "images.zip", files)
        output.put("data/images.zip", archive)
        for path in write_folder(folder / "loose", files).rglob("*.jpg"):
            output.put(path.relative_to(folder).as_posix(), path)
        environment = runner.job_environment(AWS_ENDPOINT_URL=endpoint, **stores.credentials())
        undisturbed = LocalOutput(folder / "undisturbed")
        command = HANG_CASE.arguments(str(archive), undisturbed.uri, folder / "cache", "r")
        with Job(command, environment, folder / "work", start=warm_jobs.fork_job) as job:
            ended = job.end()
        result = stores.result_of(undisturbed, "r")
        if ended.code != 0 or result is None:
            raise RuntimeError(f"The undisturbed run ended with {ended.code}: {ended.last}")
        yield HangSetup(endpoint, folder, output, environment, result, logs)


def hang_rounds(setup: HangSetup, phases: Sequence[Phase], rounds: int, seed: int, jobs: int) -> list[Stopped]:
    """So many rounds, `jobs` at a time, spread over all phases and ways to hang."""
    cells = [(phase, kind) for phase in phases for kind in phase.kinds]
    random.Random(seed).shuffle(cells)

    def one(number: int) -> Stopped:
        phase, kind = cells[number % len(cells)]
        done = run_round(setup, number, phase, kind, random.Random(f"{seed} {number}").uniform(0.05, 1.0))
        wrong = "".join(f"; WRONG: {text}" for text in done.wrong)
        print(
            f"#{number} {phase.name}, {kind}: {done.seconds:.2f} s in {done.where}{wrong}", file=sys.stderr, flush=True
        )
        return done

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, range(rounds)))


def table(done: Sequence[Stopped]) -> str:
    """Seconds from SIGTERM to the end, by phase, followed by what went wrong."""
    rows = []
    for phase in [each for each in PHASES if any(one.phase == each.name for one in done)]:
        of = [each for each in done if each.phase == phase.name]
        seconds, wrong = [each.seconds for each in of], sum(bool(each.wrong) for each in of)
        allowed = HANG_GRACE_S if phase.stores else AT_ONCE_S
        verdict = f"{wrong} WRONG" if wrong else "stopped"
        rows.append(
            (phase.name, len(of), f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}", f"{allowed:g}", verdict)
        )
    wrong_lines = [f"- {each.phase}, {each.kind}: {text}" for each in done for text in each.wrong]
    return "\n".join([markdown_table(("phase", "runs", "median s", "most", "allowed", "verdict"), rows), *wrong_lines])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phase", default="", help="words in the phases' names, separated by commas; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="rounds at a time")
    parser.add_argument("--json", type=Path, help="file for the rounds")
    parser.add_argument("--logs", type=Path, help="folder for the log of each round")
    options = parser.parse_args()
    wanted = [phase for phase in PHASES if any(word in phase.name for word in options.phase.split(","))]
    begun = time.monotonic()
    with hang_setup(options.logs) as setup:
        done = hang_rounds(setup, wanted, options.rounds, options.seed, options.jobs)
    wrong = sum(bool(each.wrong) for each in done)
    print(table(done))
    print(f"\n{len(done)} rounds in {time.monotonic() - begun:.0f} s, {wrong} wrong")
    if options.json:
        options.json.write_text(json.dumps([vars(each) for each in done], indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
