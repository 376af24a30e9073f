"""`submit sagemaker`: the request for a SageMaker training job, and what its final status means as an exit code.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from inat_job import events
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
from inat_job.platforms.submission import Command, State, SubmitOptions, lasting_output, our_code, pages, refuse_unused
from inat_job.telemetry import metric_lines

NEEDS = ("image", "role")

LOG_GROUP = "/aws/sagemaker/TrainingJobs"

_INSTANCE, _DISK_GIB = "ml.g5.xlarge", 100
_RUNTIME_S = 86400
_PARTS = {"parta": "a", "partb": "b"}


def build(request: SubmitOptions, command: Command) -> list[dict[str, Any]]:
    """The request of CreateTrainingJob. Raises UsageError for what SageMaker would refuse or ignore."""
    refuse_unused(request, "sagemaker")
    if command.verb not in _PARTS:
        raise UsageError(f"{command.verb} is not what SageMaker trains: use parta or partb.")
    runtime = round(request.timeout or _RUNTIME_S)
    stopping = {"MaxRuntimeInSeconds": runtime}
    if request.spot:
        stopping["MaxWaitTimeInSeconds"] = 2 * runtime  # as long again for machines to be had
    said = hyperparameters(request, command)
    output = said["output"].rstrip("/")
    training: dict[str, Any] = {
        "TrainingJobName": request.name,
        "AlgorithmSpecification": {
            "TrainingImage": request.image,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in metric_lines.DEFINITIONS],
        },
        "HyperParameters": said,
        "RoleArn": request.role,
        # SageMaker writes to <output>/<job>/output, and so into the run folder
        "OutputDataConfig": {"S3OutputPath": output},
        "ResourceConfig": {
            "InstanceType": request.instance_type or _INSTANCE,
            "InstanceCount": request.nodes,
            "VolumeSizeInGB": request.disk or _DISK_GIB,
        },
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": request.spot,
        # The job's own store has the checkpoints; what else is left in the folder outlives a Spot machine by this.
        "CheckpointConfig": {"S3Uri": f"{output}/{said['run-id']}/opt-ml", "LocalPath": "/opt/ml/checkpoints"},
        "Tags": [{"Key": key, "Value": value} for key, value in request.labels.items()],
    }
    if request.retries != 0:
        training["RetryStrategy"] = {"MaximumRetryAttempts": request.retries or 3}  # of SageMaker's own errors alone
    request_models.check("sagemaker", "CreateTrainingJob", training)
    return [training]


def hyperparameters(request: SubmitOptions, command: Command) -> dict[str, str]:
    """The command for the word `train`: `part`, and each option that was set as flat text.

    The data set stays an option, --data, and becomes no channel: the job decodes while it pulls, and a channel would
    be copied to the disk before the job starts. https://docs.aws.amazon.com/sagemaker/latest/dg/model-access-training-data.html
    """
    settings, given = command.configuration.settings, command.configuration.given
    said = {"part": _PARTS[command.verb]}
    for key, (each, _) in options_by_key(settings).items():
        section, _, field = key.partition(".")
        if key in given:
            said[each.name] = _flat(getattr(settings.sections()[section], field))
    said.setdefault("run-id", str(request.name))  # a job's name is another at every submission
    if output := lasting_output(request, command):
        said["output"] = output
    return said


def _flat(value: Any) -> str:
    if isinstance(value, bool | None):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def as_text(documents: list[dict[str, Any]]) -> str:
    """The request as JSON, which `aws sagemaker create-training-job --cli-input-json` takes."""
    return json.dumps(documents[0], indent=2) + "\n"


def attempt_of(name: str, base: str) -> int:
    """Which attempt at `base` a job's name is, from 1; 0 for another's."""
    match = re.fullmatch(re.escape(base) + r"(?:-attempt-(\d+))?", name)
    return int(match[1] or 1) if match else 0


def next_name(base: str, taken: Iterable[str]) -> str:
    """A name that no job has: an account never forgets one."""
    attempts = max((attempt_of(name, base) for name in taken), default=0)
    return f"{base}-attempt-{attempts + 1}" if attempts else base


def submit(request: SubmitOptions, documents: list[dict[str, Any]]) -> "TrainingJob":
    """Create the training job under a name that is free; one at the same run that still works is taken instead.

    Raises JobError, a ConflictError where that one has other settings.
    """
    from inat_job.platforms.aws import client  # boto3 takes as long as all the rest, and a dry run needs none

    training, base = documents[0], str(documents[0]["TrainingJobName"])
    sagemaker = client.service("sagemaker", request.region)
    log = client.LogTail(client.service("logs", request.region), LOG_GROUP)
    jobs = _attempts(sagemaker, base)
    if working := next((name for name, status in jobs.items() if status in ("InProgress", "Stopping")), None):
        there = sagemaker("describe_training_job", TrainingJobName=working).get("HyperParameters")
        if there != training["HyperParameters"]:
            raise ConflictError(
                f"Training job {working} is at this run with other settings: wait for it, or give --name."
            )
        events.warn(f"Training job {working} is at this run already: none was created.")
        return TrainingJob(working, sagemaker, log)
    name = next_name(base, jobs)
    training = {**training, "TrainingJobName": name}
    request_models.check("sagemaker", "CreateTrainingJob", training)
    sagemaker("create_training_job", **training)
    return TrainingJob(name, sagemaker, log)


def _attempts(sagemaker: Any, base: str) -> dict[str, str]:
    """Status by name of all the jobs that were attempts at a run."""
    return {
        each["TrainingJobName"]: each["TrainingJobStatus"]
        for page in pages(sagemaker, "list_training_jobs", "NextToken", NameContains=base, MaxResults=100)
        for each in page["TrainingJobSummaries"]
        if attempt_of(each["TrainingJobName"], base)
    }


class TrainingJob:
    """A training job that was created."""

    def __init__(self, job: str, sagemaker: Any, log: Any) -> None:
        self._job, self._sagemaker, self._log = job, sagemaker, log

    @property
    def name(self) -> str:
        return f"training job {self._job}"

    def look(self) -> State:
        """Where it stands, with what its first host's log has new. Raises JobError."""
        job = self._sagemaker("describe_training_job", TrainingJobName=self._job)
        lines = self._log.new(self._log.newest(f"{self._job}/algo-1-"))
        code, reason = ended(job)
        return State(str(job.get("SecondaryStatus") or job["TrainingJobStatus"]), tuple(lines), code, reason)


_CODE = re.compile(r"exit code:? *'?(\d+)", re.IGNORECASE)
"""What SageMaker appends to the words of our failure file: `AlgorithmError: <words>, exit code: 65`."""

_REASONS = (
    (r"CapacityError|InternalServerError", TransientError, "submit it again later, or take another --instance-type"),
    (r"ClientError.*(AccessDenied|403|[Pp]ermission|not authorized)", NoPermissionError, "let --role do it"),
    (r"ClientError.*([Dd]ata download|NoSuchKey|404)", BadDataError, "check the channel's address"),
    (r"ClientError.*[Mm]emory", ConflictError, "take a larger --instance-type"),
    (r"ClientError", ConflictError, "check image, role and instance type"),
)
"""A pattern of the reason where no container ended, what it means, and what to do. The first that matches counts."""

_STOPPED = {
    "MaxRuntimeExceeded": "--timeout was over: the same command goes on from the checkpoint",
    "MaxWaitTimeExceeded": "no Spot machine was to be had in time: the same command goes on from the checkpoint",
}


def ended(job: Mapping[str, Any]) -> tuple[int | None, str]:
    """Our exit code for a described training job, None while it has not ended, and the reason."""
    status, secondary = job["TrainingJobStatus"], str(job.get("SecondaryStatus") or "")
    said = str(job.get("FailureReason") or "")
    if status == "Completed":
        return 0, ""
    if status == "Stopped":
        return Preempted.exit_code, _STOPPED.get(secondary) or said or "it was stopped"
    if status != "Failed":
        return None, ""
    codes = _CODE.findall(said)
    if codes:  # the last: what stands before it are our own words
        return our_code(int(codes[-1])), said
    for pattern, kind, mend in _REASONS:
        if re.search(pattern, said, re.DOTALL):
            return kind.exit_code, f"{said}: {mend}"
    return JobError.exit_code, said or "SageMaker gives no reason"
