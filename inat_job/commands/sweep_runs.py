"""The runs of a sweep, each in a process of its own: its trials, and the best settings again with several seeds."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from inat_job import configuration, events, signals
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.command_options import SweepOptions
from inat_job.commands import train
from inat_job.distributed import world
from inat_job.errors import BadDataError, BadImagesError, ConflictError, EndedError, JobError
from inat_job.host import cpu, environment, nvidia
from inat_job.platforms.platform import NO_PLATFORM
from inat_job.run import exit
from inat_job.run.job import Job
from inat_job.run.run_state import REPORT, open_run
from inat_job.run.sweep_folder import BEST
from inat_job.run.timing import Clock
from inat_job.run.trial_link import Ended, Epochs, TrialLink
from inat_job.search.outcomes import MOST_FAILURES, Next, next_of
from inat_job.search.space import Value
from inat_job.search.sweep_report import Best, Retrained
from inat_job.search.trial_process import TrialProcess
from inat_job.settings import Settings, TrainSettings
from inat_job.signals import StopFlag
from inat_job.storage.lease import LeaseError
from inat_job.storage.run_folder import RunFolder
from inat_job.telemetry import liveness

_PAUSE_S = 2.0


@dataclass(frozen=True)
class Sweep:
    """What the runs of a sweep share: settings, how many run at a time, the sweep's folder, and the stop flag.

    `conditional` says whether the store takes conditional writes.
    """

    base: Settings
    parallel: int
    folder: RunFolder
    stop: StopFlag
    conditional: bool = True

    def settings_of(self, values: Mapping[str, Value], where: str, run_id: str = "run", seed: int = 0) -> Settings:
        """The settings of the run `where`/`run_id` in the sweep's folder, on one device. Raises UsageError."""
        settings = configuration.changed(self.base, values, "sweep")
        run = dataclasses.replace(settings.run, output=f"{self.folder.uri}/{where}", run_id=run_id)
        recipe = dataclasses.replace(settings.train, devices=1, num_nodes=1, seed=settings.train.seed + seed)
        return dataclasses.replace(settings, run=run, train=recipe)

    def open(self, where: str, run_id: str) -> RunFolder:
        """The folder of a run of the sweep."""
        return open_run(self.base, f"{self.folder.uri}/{where}/{run_id}", self.stop)


@dataclass(frozen=True)
class Task:
    """A run's settings, its name in the tracker, whether it is a trial, and whether its warnings are JSON."""

    settings: Settings
    tracked_as: str
    is_trial: bool
    json: bool


def check_parallel(train: TrainSettings, parallel: int) -> None:
    """Raise ConflictError for more trials at a time than GPUs: those beyond would find none, and use the CPU."""
    found = nvidia.gpu_count() if parallel > 1 and train.accelerator in ("auto", "cuda") else 0
    if 0 < found < parallel:
        raise ConflictError(
            f"--parallel is {parallel}, and each trial needs a GPU of its own, but this machine has {found}: lower it."
        )


def start_trial(sweep: Sweep, number: int, settings: Settings, slot: int) -> TrialProcess:
    """Start a trial, or what is left of it, on the GPU `slot` of those that this process may use."""
    named = dataclasses.replace(settings, run=dataclasses.replace(settings.run, run_id=str(number)))
    return _start(sweep, Task(named, f"{sweep.folder.run_id}-{number}", True, events.is_json()), slot)


def _start(sweep: Sweep, task: Task, slot: int = 0) -> TrialProcess:
    variables = {"WANDB_RUN_GROUP": sweep.folder.run_id}
    if sweep.parallel > 1:
        variables["CUDA_VISIBLE_DEVICES"] = environment.visible_gpu(slot)
        if task.is_trial:  # the others are run one at a time
            share = cpu.thread_count(cpu.available_cpus(), processes=sweep.parallel)
            variables["OMP_NUM_THREADS"] = str(share)
    return TrialProcess(run_task, task, variables)


def run_task(task: Task, connection: Connection) -> Ended:
    """Do a run in this process, which was made for it, and return how it ended."""
    settings, stop = task.settings, StopFlag()
    stop.install()
    stop.ignore_repeats()  # Ctrl-C in a terminal reaches this process, and so does the worker's signal for it
    events.configure(text=not task.json)
    events.only_warnings()
    exit.silence_libraries()
    exit.skip_termination_message(True)
    liveness.start()
    grace_s = settings.run.grace_seconds
    signals.end_within_grace(stop, grace_s, _say_nothing, _say_nothing, signals.reserve_s(grace_s))
    link = TrialLink(connection, stop, settings.run.lease_seconds) if task.is_trial else None
    try:
        folder = open_run(settings, settings.run_id, stop)
        rank = world.local_ranks(settings, NO_PLATFORM)[0]
        train.run_rank(Job(settings, folder, rank, Clock(time.perf_counter()), stop, link, task.tracked_as))
        return Ended(0, "Done.", _accuracies(folder) if task.is_trial else ())
    except LeaseError as error:
        return Ended(error.exit_code, str(error), held=True)
    except JobError as error:
        return Ended(error.exit_code, str(error), on_images=isinstance(error, BadImagesError))
    except Exception as error:
        exit.show(error)
        return Ended(1, f"Unexpected {type(error).__name__}: {error}")


def _accuracies(folder: RunFolder) -> tuple[float, ...]:
    """The validation accuracy after each epoch of a finished trial, whichever worker ran it. Raises BadDataError."""
    stored = CheckpointIndex(folder).discover().stored
    if not stored or not stored[-1].accuracies:
        raise BadDataError(f"{folder.uri} is a finished trial without validation accuracies: delete that run.")
    return tuple(stored[-1].accuracies)


def _say_nothing() -> None:
    """The worker says why its runs stop."""


def read_report(folder: RunFolder) -> dict[str, Any]:
    """The report of a finished run of the sweep. Raises BadDataError."""
    report = folder.read_json(REPORT)
    if not isinstance(report, dict) or not isinstance(report.get("val", ""), dict | None):
        raise BadDataError(f"{folder.uri}/{REPORT} is no report of a sweep's run: delete that run.")
    return report


def device_of(folder: RunFolder) -> str | None:
    """What a finished run was trained on, None if its report is gone."""
    report = folder.read_json(REPORT)
    return str(report["environment"]["device"]) if report else None


def retrain(sweep: Sweep, best: Best, request: SweepOptions) -> list[Retrained]:
    """Train and test the best settings with several seeds; those that are finished are only read.

    With `final` they train on the validation images too, and for the epochs after which the trial was best. Raises
    Preempted when stopped, EndedError where a run fails.
    """
    if request.retrain:
        events.phase("retrain")
    done = []
    for seed in range(request.retrain):
        # With the trial, since more trials may bring other best settings.
        run_id = f"trial-{best.number}-{'final' if request.final else 'seed'}-{seed}"
        settings = sweep.settings_of(best.values, BEST, run_id, seed)
        if request.final:
            recipe = dataclasses.replace(settings.train, final=True, epochs=best.epochs, early_stop=None)
            settings = dataclasses.replace(settings, train=recipe)
        _run_to_end(sweep, Task(settings, f"{sweep.folder.run_id}-{run_id}", False, events.is_json()))
        folder = sweep.open(BEST, run_id)
        done.append(Retrained.of(settings.train.seed, folder.uri, read_report(folder)))
        events.emit("retrained", seed=settings.train.seed, test_accuracy=done[-1].test, val_accuracy=done[-1].val)
    return done


def _run_to_end(sweep: Sweep, task: Task) -> None:
    """Do a run, or wait until the worker that holds it has done it."""
    failures = 0
    while True:
        signals.check(sweep.stop, "training the best settings again")
        ended = _wait(sweep, _start(sweep, task))
        signals.check(sweep.stop, "training the best settings again")
        failures += ended.is_failure
        outcome = next_of(ended, pruned=False, failures=failures)
        if outcome is Next.DONE:
            return
        if outcome is not Next.CONTINUE or failures >= MOST_FAILURES:
            raise EndedError(f"The best settings could not be trained again: {ended.sentence}", ended.code)
        signals.pause(_PAUSE_S, sweep.stop, "waiting for another worker")


def _wait(sweep: Sweep, process: TrialProcess) -> Ended:
    stopped = False
    while True:
        if sweep.stop() and not stopped:
            process.stop()
            stopped = True
        if process.connection.poll(0.1):
            message = process.receive()
            if isinstance(message, Ended):
                return message
            assert isinstance(message, Epochs)
            process.answer(False)
