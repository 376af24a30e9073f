"""`sweep`: search for the best settings by validation accuracy, train them again, and test them once.

A worker is this command. The same command on another machine, or again after a stop, is another worker of the sweep.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from inat_job import events
from inat_job.command_options import SweepOptions
from inat_job.commands import sweep_runs
from inat_job.commands.sweep_runs import Sweep
from inat_job.errors import BadDataError, ConflictError, PreconditionFailed
from inat_job.host import process
from inat_job.job_status import STATUS
from inat_job.options import public_uri
from inat_job.reporting.sweep_page import render_sweep
from inat_job.reporting.tracker_check import check_tracking
from inat_job.run.outputs import warn_of_loss
from inat_job.run.prepare_images import prepare_images
from inat_job.run.run_state import CONFIG, REPORT, lease_run, open_run
from inat_job.run.sweep_folder import BEST, SWEEP, TRIALS
from inat_job.run.timing import Clock
from inat_job.search import space as spaces
from inat_job.search import study as studies
from inat_job.search import sweep_report
from inat_job.search.definition import Definition, definition_of, sweep_id
from inat_job.search.journal import StoreJournal
from inat_job.search.outcomes import Limits, SearchState, how_to_go_on
from inat_job.search.space import Axis
from inat_job.search.study import Search
from inat_job.search.sweep_report import Retrained, SweepRecord
from inat_job.search.trial_leases import TrialLeases
from inat_job.search.trial_process import preload
from inat_job.search.trials import Trials
from inat_job.search.worker import Worker
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage import probe
from inat_job.storage.disk import parse_json
from inat_job.storage.lease import LeaseError
from inat_job.telemetry import heartbeat

PAGE = "report.html"
FOLDER = "the sweep's folder"
"""Where the study is without --storage, as sweep.json says it."""

_ASKED = ("trials", "max_time", "target", "patience", "retrain", "final")
"""Options that decide when a sweep is over; with others, the same sweep goes on."""


def space_text(settings: Settings, request: SweepOptions, given: Collection[str]) -> str:
    """What is searched, as TOML for `--space`: the settings that are `given` for all trials are not."""
    return spaces.as_text(spaces.space_of(settings, request.space, given))


def run(settings: Settings, request: SweepOptions, given: Collection[str], stop: StopFlag, started: float) -> None:
    """Work on the sweep until it is over: search, train the best settings again, test them, and report."""
    check_tracking(settings.tracker, stop)
    sweep_runs.check_parallel(settings.train, request.parallel)
    space = spaces.space_of(settings, request.space, given)
    definition = definition_of(settings, request, space)
    folder = open_run(settings, settings.run.run_id or sweep_id(definition), stop)
    STATUS.run_id, STATUS.run = folder.run_id, folder.uri
    warn_of_loss(folder.uri)
    sweep = Sweep(settings, request.parallel, folder, stop)
    with heartbeat.emit_heartbeats(), ExitStack() as held:
        if not probe.probe(folder.store):  # then only one worker can be, which holds the folder
            sweep = dataclasses.replace(sweep, conditional=False)
            held.enter_context(_only_worker(sweep))
        study = public_uri(request.study) if request.study else FOLDER
        _refuse_another(sweep, definition, study)
        asked = {name: getattr(request, name) for name in _ASKED}
        report = folder.read_json(REPORT)
        if sweep_report.is_of(report, asked):
            events.emit("done", message=f"Already finished; there is nothing to do: see {folder.uri}/{REPORT}.")
            return
        journal = None if request.study else StoreJournal(folder.store, conditional=sweep.conditional)
        storage = studies.open_storage(journal, request.study, stop)
        _begin(sweep, definition, study)
        preload()
        cache = prepare_images(settings, Clock(started), stop)
        held.callback(lambda: cache)  # whose hold would end with the last reference
        with studies.database_errors(request.study):
            trials = _open_trials(sweep, request, space, journal, storage)
            record = _search(sweep, request, asked, space, trials)
        _report(sweep, record, sweep_runs.retrain(sweep, record.best, request))


@contextmanager
def _only_worker(sweep: Sweep) -> Iterator[None]:
    """Hold the sweep's folder, on a store that allows for one worker alone. Raises LeaseError for a second one."""
    try:
        with lease_run(sweep.folder, sweep.base.run.lease_seconds, sweep.stop):
            yield
    except LeaseError as error:
        raise LeaseError(
            f"{sweep.folder.uri} is in a store without conditional writes, where a sweep has one worker: use one, or "
            f"another --output. {error}"
        ) from None


def _begin(sweep: Sweep, definition: Definition, study: str) -> None:
    """Store what the sweep is, and where its study is: only once that can be opened, since no other place is taken
    afterwards. Raises as `_refuse_another`, also for a sweep that another worker has begun meanwhile.
    """
    content = {**definition, "study": study, "settings": sweep.base.anchored().as_dict()}
    text = json.dumps(content, indent=2) + "\n"
    with suppress(PreconditionFailed):
        if sweep.folder.store.stat(SWEEP) is None:
            sweep.folder.store.put(SWEEP, text.encode(), if_none_match=sweep.conditional)
            return
    _refuse_another(sweep, definition, study)


def _refuse_another(sweep: Sweep, definition: Definition, study: str) -> None:
    """Raise ConflictError if the folder holds another sweep, one whose study is elsewhere, or a run."""
    store = sweep.folder.store
    if store.stat(SWEEP) is None:
        if store.stat(CONFIG) is not None:
            raise ConflictError(f"{store.uri} is a run, which a sweep would damage: change --run-id.")
        return
    try:
        stored = parse_json(store.read(SWEEP))
        differing = [name for name in definition if stored[name] != json.loads(json.dumps(definition[name]))]
        stored_study = stored.get("study", study)
    except (ValueError, TypeError, LookupError):
        raise BadDataError(f"{store.uri}/{SWEEP} is damaged: give the sweep another --run-id.") from None
    if differing:
        raise ConflictError(
            f"{store.uri} is a sweep with another {', '.join(differing)}: change --run-id, or search as it does."
        )
    if stored_study != study:
        is_given = "not given" if study == FOLDER else study
        use = "leave --storage out" if stored_study == FOLDER else f"use --storage {stored_study}"
        raise ConflictError(
            f"--storage is {is_given}, and the study of {store.uri} is in {stored_study}: {use}, or change --run-id."
        )


def _open_trials(
    sweep: Sweep,
    request: SweepOptions,
    space: dict[str, Axis],
    journal: StoreJournal | None,
    storage: studies.StudyStorage,
) -> Trials:
    default = spaces.default_point(sweep.base, space)
    search = Search(request.sampler, request.pruner, sweep.base.train.seed, default)
    study = studies.open_study(storage, sweep.folder.run_id, search)
    together = journal.together if journal else nullcontext
    return Trials(study, space, lambda values: sweep.settings_of(values, TRIALS), together)


def _search(
    sweep: Sweep, request: SweepOptions, asked: Mapping[str, Any], space: dict[str, Axis], trials: Trials
) -> SweepRecord:
    limits = Limits(request.trials, request.max_time, request.target, request.patience)
    leases = TrialLeases(lambda number: sweep.open(TRIALS, str(number)).store, sweep.base.run.lease_seconds)
    events.phase("search")
    start = partial(sweep_runs.start_trial, sweep)
    why = Worker(trials, start, leases.is_free, limits, sweep.parallel, sweep.stop).run()
    _require_best(sweep.folder.run_id, why, trials.state(), limits, trials.failures_in_a_row())
    return SweepRecord(
        part=sweep.base.part,
        sweep_id=sweep.folder.run_id,
        asked=asked,
        why=why,
        space=space,
        trials=trials.counted(),
        importances=trials.importances(),
        epochs=sweep.base.train.epochs,
    )


def _require_best(sweep_id: str, why: str, state: SearchState, limits: Limits, failures: Sequence[str]) -> None:
    """Raise ConflictError for a search that is over before a trial was done; its last trials had these `failures`."""
    if state.best is not None:
        return
    if failures and len(failures) == len(state.values):
        raise ConflictError(f"{sweep_id} has no best trial: all {len(failures)} failed, the last one so: {failures[0]}")
    fix = how_to_go_on(state, limits)
    raise ConflictError(f"{sweep_id} ended without a finished trial, so there is no best one ({why}): {fix}.")


def _report(sweep: Sweep, record: SweepRecord, retrained: list[Retrained]) -> None:
    folder = sweep.folder
    device = sweep_runs.device_of(sweep.open(TRIALS, str(record.best.number)))
    settings = sweep.settings_of(record.best.values, BEST).as_dict()
    content = sweep_report.build(record, retrained, settings, device)
    folder.write(PAGE, render_sweep(content, process.command_prefix()))
    folder.publish(PAGE)
    folder.write_json(REPORT, content)
    folder.publish(REPORT)
    STATUS.outcome = sweep_report.sentence(content)
    events.emit("done", message=STATUS.outcome, report=f"{folder.uri}/{REPORT}")
