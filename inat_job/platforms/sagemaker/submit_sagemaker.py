"""`submit sagemaker`: the request for a SageMaker training job, and the exit code of the job's status.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from inat_job import events, options
from inat_job.command_options import SweepOptions
from inat_job.configuration import options_by_key
from inat_job.errors import (
    BadDataError,
    ConflictError,
    JobError,
    NoPermissionError,
    Preempted,
    TransientError,
    UsageError,
)
from inat_job.platforms.aws import request_models
from inat_job.platforms.submission import (
    Command,
    Handle,
    State,
    SubmitOptions,
    lasting_output,
    our_code,
    pages,
    refuse_unused,
)
from inat_job.platforms.submit_values import INT32, ROLE, check_maxima, check_patterns
from inat_job.platforms.yaml_patch import patched, read_patch
from inat_job.telemetry import metric_lines

NEEDS = ("image", "role")

LOG_GROUP = "/aws/sagemaker/TrainingJobs"

_INSTANCE_TYPE, _DISK_GIB = "ml.g5.xlarge", 100
_RUNTIME_S = 86400
_MAXIMA = {"timeout": 28 * 86400, "retries": 30, "disk": INT32}
"""The largest numbers by field.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StoppingCondition.html
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_RetryStrategy.html
"""
_COMMAND = "which is the command: give it after --"
_FIXED = {
    "TrainingJobName": "which names the run: use --name",
    "HyperParameters": _COMMAND,
    "AlgorithmSpecification.ContainerEntrypoint": _COMMAND,
    "AlgorithmSpecification.ContainerArguments": _COMMAND,
    "ResourceConfig.InstanceCount": "which is --nodes: use it",
}
"""What --patch may not change, by path, with the reason."""
_COMMANDS = ("parta", "partb", "sweep")


def build(request: SubmitOptions, command: Command) -> list[dict[str, Any]]:
    """A request of CreateTrainingJob, for a sweep one for each worker.

    Raises UsageError for what SageMaker would refuse or ignore.
    """
    refuse_unused(request, "sagemaker")
    check_patterns(request, {"role": ROLE})
    check_maxima(request, _MAXIMA, "SageMaker")
    if command.verb not in _COMMANDS:
        raise UsageError(f"SageMaker cannot run {command.verb}: use {', '.join(_COMMANDS)}.")
    numbers = range(1, request.workers + 1)
    names = [f"{request.name}-worker-{number}" for number in numbers] if request.workers > 1 else [str(request.name)]
    patches = read_patch(request.patch)
    documents = [patched(_training(request, command, name), patches, _FIXED) for name in names]
    for each in documents:
        request_models.check("sagemaker", "CreateTrainingJob", each)
    return documents


def _training(request: SubmitOptions, command: Command, name: str) -> dict[str, Any]:
    runtime = round(request.timeout or _RUNTIME_S)
    stopping = {"MaxRuntimeInSeconds": runtime}
    if request.spot:
        stopping["MaxWaitTimeInSeconds"] = 2 * runtime  # as long again to wait for Spot machines
    parameters = hyperparameters(request, command)
    output = parameters["output"].rstrip("/")
    training: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": request.image,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in metric_lines.DEFINITIONS],
        },
        "HyperParameters": parameters,
        "RoleArn": request.role,
        # SageMaker writes to <output>/<job>/output, which is inside the run folder
        "OutputDataConfig": {"S3OutputPath": output},
        "ResourceConfig": {
            "InstanceType": request.instance_type or _INSTANCE_TYPE,
            "InstanceCount": request.nodes,
            "VolumeSizeInGB": request.disk or _DISK_GIB,
        },
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": request.spot,
        # The job stores its checkpoints itself; this keeps whatever else is in the folder when a Spot machine ends.
        "CheckpointConfig": {
            "S3Uri": f"{output}/{parameters['run-id']}/{'-'.join(['opt-ml', *_worker(request, name)])}",
            "LocalPath": "/opt/ml/checkpoints",
        },
        "Tags": [{"Key": key, "Value": value} for key, value in request.labels.items()],
    }
    if request.variables:
        training["Environment"] = request.variables
    if request.retries != 0:
        training["RetryStrategy"] = {"MaximumRetryAttempts": request.retries or 3}  # SageMaker's own errors only
    return training


def _worker(request: SubmitOptions, name: str) -> list[str]:
    """The worker's number in its job's name, none where there is one job."""
    return [name.rpartition("-")[2]] if request.workers > 1 else []


def hyperparameters(request: SubmitOptions, command: Command) -> dict[str, str]:
    """The command as hyperparameters of `train`: `part`, `command` if it is a sweep, and each option that was set.

    The data set stays an option, --data, rather than a channel: the job decodes while it downloads, but SageMaker would
    copy a channel to disk before the job starts.
    https://docs.aws.amazon.com/sagemaker/latest/dg/model-access-training-data.html
    """
    settings, given = command.configuration.settings, command.configuration.given
    parameters = {"part": settings.part}
    if command.sweep:
        parameters |= {"command": command.verb, **_changed(command.sweep)}
    values = settings.by_key()
    for key, (each, _) in options_by_key(settings).items():
        if key in given:
            parameters[each.name] = _as_text(values[key])
    parameters.setdefault("run-id", str(request.name))  # because a job's name changes with every submission
    if output := lasting_output(request, command):
        parameters["output"] = output
    elif command.writes_run and command.output and not command.output.lower().startswith("s3://"):
        raise UsageError(f"--output is {command.output!r}, and SageMaker stores in s3:// only: use s3://bucket/prefix.")
    return parameters


def _changed(sweep: SweepOptions) -> dict[str, str]:
    """The options of a sweep that are not the defaults, by name."""
    known = options.options_of(SweepOptions)
    values = {field: value for field in known if (value := getattr(sweep, field)) != getattr(SweepOptions, field)}
    return {known[field][0].name: _as_text(value) for field, value in values.items()}


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else options.as_text(value)


def as_text(documents: list[dict[str, Any]]) -> str:
    """The request as JSON, which `aws sagemaker create-training-job --cli-input-json` takes; several as a list."""
    return json.dumps(documents if len(documents) > 1 else documents[0], indent=2) + "\n"


def attempt_of(name: str, base: str) -> int:
    """The number of the attempt at the run `base`, from 1, by the job's name; 0 for another run's job."""
    match = re.fullmatch(re.escape(base) + r"(?:-attempt-(\d+))?", name)
    return int(match[1] or 1) if match else 0


def next_name(base: str, taken: Iterable[str]) -> str:
    """A name that no job has yet, because an account never frees the name of a job."""
    attempts = max((attempt_of(name, base) for name in taken), default=0)
    return f"{base}-attempt-{attempts + 1}" if attempts else base


def submit(request: SubmitOptions, documents: list[dict[str, Any]]) -> Handle:
    """Create each training job under a free name, unless one of its run, or of this worker of it, is active.

    Raises JobError, in particular ConflictError if that job has other settings.
    """
    from inat_job.platforms.aws import client  # boto3 loads slowly, and a dry run does not need it

    sagemaker, logs = client.service("sagemaker", request.region), client.service("logs", request.region)
    jobs = [_submitted(sagemaker, client.LogTail(logs, LOG_GROUP), each) for each in documents]
    return TrainingJobs(jobs) if len(jobs) > 1 else jobs[0]


def _submitted(sagemaker: Any, log: Any, training: dict[str, Any]) -> "TrainingJob":
    base = str(training["TrainingJobName"])
    jobs = _attempts(sagemaker, base)
    if running := next((name for name, status in jobs.items() if status in ("InProgress", "Stopping")), None):
        parameters = sagemaker("describe_training_job", TrainingJobName=running).get("HyperParameters")
        if parameters != training["HyperParameters"]:
            raise ConflictError(
                f"Training job {running} works on this run with other settings: wait for it, or use --name."
            )
        events.warn(f"Training job {running} already works on this run: no job was created.")
        return TrainingJob(running, sagemaker, log)
    name = next_name(base, jobs)
    training = {**training, "TrainingJobName": name}
    request_models.check("sagemaker", "CreateTrainingJob", training)
    sagemaker("create_training_job", **training)
    return TrainingJob(name, sagemaker, log)


def _attempts(sagemaker: Any, base: str) -> dict[str, str]:
    """The status by name of all jobs that are attempts at a run."""
    return {
        each["TrainingJobName"]: each["TrainingJobStatus"]
        for page in pages(sagemaker, "list_training_jobs", "NextToken", NameContains=base, MaxResults=100)
        for each in page["TrainingJobSummaries"]
        if attempt_of(each["TrainingJobName"], base)
    }


class TrainingJob:
    """A submitted training job."""

    def __init__(self, name: str, sagemaker: Any, log: Any) -> None:
        self._name, self._sagemaker, self._log = name, sagemaker, log
        self.name = f"training job {name}"

    def read_state(self) -> State:
        """The job's state, with the new lines of its first host's log. Raises JobError."""
        job = self._sagemaker("describe_training_job", TrainingJobName=self._name)
        lines = self._log.new(self._log.newest(f"{self._name}/algo-1-"))
        code, reason = exit_code_of(job)
        return State(str(job.get("SecondaryStatus") or job["TrainingJobStatus"]), tuple(lines), code, reason)


class TrainingJobs:
    """The training jobs of a sweep's workers. The first that is done ends it, since the sweep is finished then."""

    def __init__(self, jobs: Sequence[TrainingJob]) -> None:
        self._jobs = jobs
        self.name = f"{jobs[0].name} and {len(jobs) - 1} more"

    def read_state(self) -> State:
        """The state of the first job that is done, or that still runs, or that failed last, with all new log lines."""
        states = [job.read_state() for job in self._jobs]
        lines = tuple(line for state in states for line in state.lines)
        chosen = next((state for code in (0, None) for state in states if state.code == code), states[-1])
        return replace(chosen, lines=lines)


_EXIT_CODE = re.compile(r"exit code:? *'?(\d+)", re.IGNORECASE)
"""SageMaker appends it to the content of our failure file: `AlgorithmError: <content>, exit code: 65`."""

_REASONS = (
    (r"CapacityError|InternalServerError", TransientError, "submit it again later, or use another --instance-type"),
    (r"ClientError.*(AccessDenied|403|[Pp]ermission|not authorized)", NoPermissionError, "allow it for --role"),
    (r"ClientError.*([Dd]ata download|NoSuchKey|404)", BadDataError, "check the channel's address"),
    (r"ClientError.*[Mm]emory", ConflictError, "use a larger --instance-type"),
    (r"ClientError", ConflictError, "check image, role and instance type"),
)
"""A pattern for the reason of a job without an exit code, our error, and the fix. The first match counts."""

_STOPPED = {
    "MaxRuntimeExceeded": "--timeout is over: the same command resumes from the checkpoint",
    "MaxWaitTimeExceeded": "no Spot machine was available in time: the same command resumes from the checkpoint",
}


def exit_code_of(job: Mapping[str, Any]) -> tuple[int | None, str]:
    """Our exit code for a training job's description, None while the job runs, and the reason."""
    status, secondary = job["TrainingJobStatus"], str(job.get("SecondaryStatus") or "")
    reason = str(job.get("FailureReason") or "")
    if status == "Completed":
        return 0, ""
    if status == "Stopped":
        return Preempted.exit_code, _STOPPED.get(secondary) or reason or "it was stopped"
    if status != "Failed":
        return None, ""
    codes = _EXIT_CODE.findall(reason)
    if codes:  # the last one: those before it are in our own message
        return our_code(int(codes[-1])), reason
    for pattern, kind, fix in _REASONS:
        if re.search(pattern, reason, re.DOTALL):
            return kind.exit_code, f"{reason}: {fix}"
    return JobError.exit_code, reason or "SageMaker gives no reason"
