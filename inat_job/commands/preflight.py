"""`preflight`: checks everything that a job needs, at once and within seconds, and changes nothing."""

import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.address import child
from inat_job.errors import BadDataError, JobError, NoPermissionError
from inat_job.host import cloud_login, environment
from inat_job.ingest.inspect import summarise
from inat_job.models.find_weights import find_weights
from inat_job.platforms.platform import Platform
from inat_job.reporting.tracker_check import check_tracker, check_tracking
from inat_job.run import outputs, resources
from inat_job.run.checks import Check, CheckResult, CheckWarning, run_checks, worst_failure
from inat_job.run.prepare_images import arrangement
from inat_job.run.run_state import RunState, decide_run_state, open_run, read_config, storage_options
from inat_job.run.sweep_folder import refuse_sweep
from inat_job.settings import Settings
from inat_job.signals import Stop, never
from inat_job.storage import StorageOptions, open_store
from inat_job.storage.probe import probe
from inat_job.storage.run_folder import RunFolder

LIMIT_S = 10.0
"""Seconds after which the command has ended, including the start of the process."""

_OWN_S, _SIDE_S, _LEAST_S = 1.5, 5.0, 2.0
"""Seconds for start and end of the process, for a check that cannot fail the job, and for any check at least."""

_RETRIES = 2
_CLOCK_WARNS_S = 300.0


@dataclass(frozen=True)
class _Job:
    """What the checks share; `data_summary` and `state` are results of one check that others wait for."""

    settings: Settings
    platform: Platform
    options: StorageOptions
    data_summary: "Future[Any]" = field(default_factory=Future)
    state: "Future[RunState]" = field(default_factory=Future)

    @property
    def uris(self) -> tuple[str, ...]:
        weights = getattr(self.settings.model, "weights", "")
        return (self.settings.data.uri, self.settings.run.output, weights, self.settings.run.init_from or "")

    def uses(self, scheme: str) -> bool:
        """Whether anything is in a bucket of this scheme."""
        return any(uri.lower().startswith(f"{scheme}://") for uri in self.uris)

    def folder(self, name: str) -> RunFolder:
        """The folder of a run, a run id under `--output` or a URI."""
        return open_run(self.settings, name, options=self.options)

    @property
    def run_uri(self) -> str:
        """The address of the run's folder."""
        return child(self.settings.run.output, self.settings.run_id)


def run(settings: Settings, platform: Platform, stop: Stop, started: float | None = None) -> None:
    """Report on each thing that the job needs. Raises the worst of the errors that the job would end with.

    `started` is the time.perf_counter() of the process's start, if that counts too.
    """
    begun = time.perf_counter() if started is None else started
    seconds = max(_LEAST_S, LIMIT_S - _OWN_S - (time.perf_counter() - begun))
    options = replace(storage_options(settings.storage), retries=_RETRIES)
    findings = []
    for finding in run_checks(checks(_Job(settings, platform, options), seconds), stop):
        findings.append(finding)
        _report(finding)
    failed = worst_failure(findings)
    counts = {outcome: sum(each.outcome == outcome for each in findings) for outcome in ("ok", "warn", "fail")}
    events.emit("preflight", **counts, code=failed.code if failed else 0, seconds=round(time.perf_counter() - begun, 1))
    if failed and failed.error:
        raise failed.error


def checks(job: _Job, seconds: float) -> Sequence[Check]:
    """The checks of what a job needs, in the order of their report; `seconds` is the time limit of each."""
    settings, side_s = job.settings, min(_SIDE_S, seconds)
    return [
        Check("platform", partial(_platform, job), seconds),
        Check("identity", partial(_identity, job), seconds),
        Check("clock", partial(_clock, job), seconds),
        Check("data", partial(_data, job), seconds),
        Check("output", partial(_output, job), seconds),
        Check("run", partial(_run, job), seconds),
        Check("init-from", partial(_init_from, job), seconds),
        Check("disk", partial(_disk, job, seconds), seconds),
        Check("ranks", partial(resources.check_ranks, settings, job.platform), seconds),
        Check("shm", partial(resources.check_shared_memory, settings.train), side_s),
        Check("memory", partial(resources.check_job_memory, settings), side_s),
        Check("device", partial(resources.check_device, settings.train, side_s), seconds),
        Check("weights", partial(_weights, job, seconds), seconds),
        Check("tracker", partial(_tracker, settings), seconds),
    ]


def _platform(job: _Job) -> str:
    outputs.check_folders(job.platform)  # by writing to them
    return ", ".join(
        f"{value}" if name == "name" else f"{name} {value}" for name, value in job.platform.log_fields().items()
    )


def _identity(job: _Job) -> str | CheckWarning:
    """Who each cloud takes the job for; only S3 is asked, of the others it is what variables and key files tell."""
    logins = {"s3": _identity_in_s3, "gs": cloud_login.google_login, "az": cloud_login.azure_login}
    used = [scheme for scheme in logins if job.uses(scheme)]
    if not used:
        return "not checked, nothing is in a bucket"
    if job.options.anonymous:
        return "not checked, --anonymous sends no credentials"
    return "; ".join((f"{scheme}:// " if len(used) > 1 else "") + logins[scheme]() for scheme in used)


def _identity_in_s3() -> str:
    from inat_job.storage.s3 import account  # boto3 is slow to import and may be absent

    found = account.identity()
    if found.arn:
        return f"{found.arn}, from {found.method}"
    return f"credentials from {found.method}; their owner is unknown: {found.why}"


def _clock(job: _Job) -> str | CheckWarning:
    if not job.uses("s3"):
        return "not compared, nothing is in S3"
    from inat_job.storage.s3 import account, s3_errors

    skew = account.skew_s()
    if skew is None:
        return "not compared, the store does not report its time"
    what = f"this machine's clock is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the store's"
    if abs(skew) > s3_errors.MAX_SKEW_S:
        raise NoPermissionError(f"Every request is refused, since {what}: set this machine's clock.")
    return CheckWarning(what, "set this machine's clock") if abs(skew) > _CLOCK_WARNS_S else what


def _data(job: _Job) -> str | CheckWarning:
    data = job.settings.data
    try:
        found = arrangement(data, job.options, never)
        summary = summarise(data.uri, Path(data.cache_dir), data.eval_size, job.options, arrangement=found)
    except BaseException:
        job.data_summary.cancel()
        raise
    job.data_summary.set_result(summary)
    summary.check_batch_size(job.settings.train, data)
    return summary.text + (f"; {summary.doubt}" if summary.doubt else "")


def _output(job: _Job) -> str | CheckWarning:
    store = open_store(job.run_uri, job.options, role="output")
    if probe(store):
        return f"{store.uri} can be written, conditionally too, read and deleted"
    return CheckWarning(
        f"{store.uri} takes no conditional writes",
        "never start two jobs of one run at the same moment, or use a bucket",
    )


def _run(job: _Job) -> str:
    try:
        folder = job.folder(job.run_uri)
        state, _ = decide_run_state(folder, job.settings)
    except BaseException:
        job.state.cancel()
        raise
    job.state.set_result(state)
    return f"{folder.run_id}, {'started again by --force' if job.settings.run.force else state.value}"


def _init_from(job: _Job) -> str:
    name = job.settings.run.init_from
    if not name:
        return "not given"
    folder = job.folder(name)
    if read_config(folder) is None:
        refuse_sweep(folder.store)
        raise BadDataError(f"--init-from names {folder.uri}, which holds no run: check the name.")
    return folder.uri


def _disk(job: _Job, seconds: float) -> str | CheckWarning:
    return resources.check_disk(job.settings, _result_of(job.data_summary, seconds))


def _weights(job: _Job, seconds: float) -> str | CheckWarning:
    """A run that is resumed has its own weights, unless it ended before its first checkpoint."""
    model = job.settings.model
    if job.settings.run.init_from:
        return "not needed, --init-from brings its own"
    try:
        found = find_weights(model, environment.torch_hub_folder(), job.options)
    except JobError as error:
        if _result_of(job.state, seconds) is not RunState.RESUME:
            raise
        return CheckWarning(str(error).rstrip("."), "not needed if the run has a checkpoint")
    return found or "not needed"


def _tracker(settings: Settings) -> str | CheckWarning:
    check_tracking(settings.tracker, never)
    mode: Any = environment.wandb_mode(settings.tracker.mode)
    found = check_tracker(mode, environment.wandb_server(), environment.has_wandb_key(), environment.wandb_key())
    return CheckWarning(found.warning, found.fix) if found.warning else found.text


def _result_of(other: "Future[Any]", seconds: float) -> Any | None:
    """The result of another check, or None if it failed or is not ready shortly before the end."""
    try:
        return other.result(max(0.0, seconds - 0.5))
    except (TimeoutError, CancelledError):
        return None


def _report(finding: CheckResult) -> None:
    """A line for a person, or an event for a machine."""
    fix = {"fix": finding.fix} if finding.fix else {}
    code = {"code": finding.code} if finding.error else {}
    if events.is_json():
        events.emit("check", check=finding.check, outcome=finding.outcome, what=finding.message, **fix, **code)
    else:
        ending = f": {finding.fix}" if finding.fix else ""
        events.write_text(f"{finding.outcome:<4}  {finding.check:<9} {finding.message}{ending}")
