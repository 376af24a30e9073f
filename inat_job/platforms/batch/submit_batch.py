"""`submit batch`: an AWS Batch job definition and job, and what the job's final status means as an exit code.

https://docs.aws.amazon.com/batch/latest/APIReference/API_RegisterJobDefinition.html
https://docs.aws.amazon.com/batch/latest/userguide/troubleshooting.html
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from inat_job import events
from inat_job.errors import ConflictError, JobError, Preempted, TransientError, UsageError
from inat_job.platforms.aws import request_models
from inat_job.platforms.submission import Command, State, SubmitOptions, lasting_output, our_code, pages, refuse_unused

NEEDS = ("image", "role", "queue")

ATTEMPTS = 10
"""The most that Batch takes: a preemption is one too."""

LOG_GROUP = "/aws/batch/job"

_CPUS, _MEMORY_GIB = 4, 14  # of a GPU: what Batch finds free on a g5.xlarge and a g4dn.xlarge
_SHARED_MIB = 1024  # of a GPU: NCCL's; there are no workers that hand images over
_DIGEST_LENGTH = 8
_FLAT = ("resourceRequirements", "environment", "secrets")  # lists without an order

RETRY = (
    {"onStatusReason": "Host EC2*", "action": "RETRY"},  # the instance was taken away
    {"onExitCode": "143", "action": "RETRY"},
    {"onExitCode": "75", "action": "RETRY"},
    {"onExitCode": "137", "action": "RETRY"},
    {"onReason": "*", "action": "EXIT"},  # what no rule matches would be retried
)
"""The first match wins; five is the most."""


def build(request: SubmitOptions, command: Command) -> list[dict[str, Any]]:
    """The requests of RegisterJobDefinition and SubmitJob. Raises UsageError for what Batch would refuse or ignore."""
    refuse_unused(request, "batch", {} if request.nodes > 1 else {"instance_type": "the queue chooses it"})
    container = _container(request, _words(request, command))
    attempts = 1 + (ATTEMPTS - 1 if request.retries is None else request.retries)
    if attempts > ATTEMPTS:
        raise UsageError(f"--retries is {request.retries}: AWS Batch takes at most {ATTEMPTS - 1}.")
    definition: dict[str, Any] = {
        **_shape(request, container),
        "retryStrategy": {"attempts": attempts, "evaluateOnExit": list(RETRY)},
        "tags": request.labels,
        "propagateTags": True,
    }
    if request.timeout:
        definition["timeout"] = {"attemptDurationSeconds": round(request.timeout)}
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:_DIGEST_LENGTH]
    name = f"{request.name}-{digest}"
    job = {"jobName": request.name, "jobQueue": request.queue, "jobDefinition": name, "tags": request.labels}
    documents = [{"jobDefinitionName": name, **definition}, {**job, "propagateTags": True}]
    request_models.check("batch", "RegisterJobDefinition", documents[0])
    request_models.check("batch", "SubmitJob", documents[1])
    return documents


def _words(request: SubmitOptions, command: Command) -> list[str]:
    """The command, told where the run goes and what it is called: a job's id is another at every submission."""
    words = list(command.words)
    if output := lasting_output(request, command):
        words += ["--output", output]
    if command.verb in ("parta", "partb") and "run.run_id" not in command.configuration.given:
        words += ["--run-id", str(request.name)]
    return words


def _container(request: SubmitOptions, words: list[str]) -> dict[str, Any]:
    each = max(1, request.gpus)
    memory_mib = 1024 * (request.memory or _MEMORY_GIB * each)
    resources = {"VCPU": request.cpus or _CPUS * each, "MEMORY": memory_mib, "GPU": request.gpus}
    container: dict[str, Any] = {
        "image": request.image,
        "command": words,
        "jobRoleArn": request.role,
        "resourceRequirements": [{"type": kind, "value": str(value)} for kind, value in resources.items() if value],
        "linuxParameters": {"sharedMemorySize": min(_SHARED_MIB * each, memory_mib // 4)},
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {"awslogs-group": LOG_GROUP, "awslogs-stream-prefix": str(request.name)},
        },
        "environment": [{"name": "AWS_REGION", "value": request.region}] if request.region else [],
    }
    if request.wandb_secret:
        if not request.execution_role:
            raise UsageError("--wandb-secret is read by the execution role: give --execution-role too.")
        container["secrets"] = [{"name": "WANDB_API_KEY", "valueFrom": request.wandb_secret}]
    if request.execution_role:
        container["executionRoleArn"] = request.execution_role
    return container


def _shape(request: SubmitOptions, container: dict[str, Any]) -> dict[str, Any]:
    """One container, or the same one on each node: the job ends as node 0 does, and is retried as a whole."""
    if request.nodes == 1:
        return {"type": "container", "containerProperties": container}
    if request.instance_type:
        container["instanceType"] = request.instance_type
    ranges = [{"targetNodes": f"0:{request.nodes - 1}", "container": container}]
    nodes = {"numNodes": request.nodes, "mainNode": 0, "nodeRangeProperties": ranges}
    return {"type": "multinode", "nodeProperties": nodes}


def as_text(documents: list[dict[str, Any]]) -> str:
    """Both requests as JSON, by the operations' names; each is what `aws batch --cli-input-json` takes."""
    return json.dumps(dict(zip(("RegisterJobDefinition", "SubmitJob"), documents, strict=True)), indent=2) + "\n"


def same(found: Any, wanted: Any) -> bool:
    """Whether all that was asked for is in what Batch has, which adds its defaults and writes actions small."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            same(_ordered(name, found.get(name)), _ordered(name, value)) or (found.get(name) is None and not value)
            for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    return str(found).casefold() == wanted.casefold() if wanted in ("RETRY", "EXIT") else bool(found == wanted)


def _ordered(name: str, value: Any) -> Any:
    if name in _FLAT and isinstance(value, list):
        return sorted(value, key=lambda each: str(each.get("name") or each.get("type")))
    return value


def submit(request: SubmitOptions, documents: list[dict[str, Any]]) -> "BatchJob":
    """Register the definition, unless its newest revision says the same, and submit the job, unless it works already.

    Raises JobError, a ConflictError where a job of this name works on something else.
    """
    from inat_job.platforms.aws import client  # boto3 takes as long as all the rest, and a dry run needs none

    definition, job = documents
    batch = client.service("batch", request.region)
    name = definition["jobDefinitionName"]
    found = batch("describe_job_definitions", jobDefinitionName=name, status="ACTIVE")["jobDefinitions"]
    newest = max(found, key=lambda each: int(each["revision"]), default=None)
    if newest is None or not same(newest, definition):
        newest = batch("register_job_definition", **definition)
    revision = f"{name}:{newest['revision']}"
    identity = _working(batch, job, revision)
    if identity:
        events.warn(f"AWS Batch job {identity} is at this run already: none was submitted.")
    else:
        identity = str(batch("submit_job", **{**job, "jobDefinition": revision})["jobId"])
    events.emit("job", id=identity, name=job["jobName"], definition=revision)
    return BatchJob(identity, batch, client.LogTail(client.service("logs", request.region), LOG_GROUP))


def _working(batch: Any, job: dict[str, Any], revision: str) -> str | None:
    """The job of this name that has not ended: a second one would only wait for the run's lease, on a paid machine."""
    named = [{"name": "JOB_NAME", "values": [job["jobName"]]}]
    for page in pages(batch, "list_jobs", "nextToken", jobQueue=job["jobQueue"], filters=named):
        for each in page["jobSummaryList"]:
            if each["jobName"] != job["jobName"] or each["status"] in ("SUCCEEDED", "FAILED"):
                continue
            if not str(each.get("jobDefinition", "")).endswith(f"/{revision}"):
                raise ConflictError(
                    f"AWS Batch job {each['jobId']} has this name and does something else: wait for it, or give --name."
                )
            return str(each["jobId"])
    return None


class BatchJob:
    """A job that was submitted."""

    def __init__(self, job: str, batch: Any, log: Any) -> None:
        self._id, self._batch, self._log = job, batch, log

    @property
    def name(self) -> str:
        return f"AWS Batch job {self._id}"

    def look(self) -> State:
        """Where it stands, with what its main node's log has new. Raises JobError."""
        job = self._described(self._id)
        main = job
        if "nodeProperties" in job:
            main = self._described(f"{self._id}#{job['nodeProperties'].get('mainNode', 0)}", job)
        stream = (main.get("container") or {}).get("logStreamName")
        code, reason = ended(job, main)
        phase = str(job["status"])
        if code is None and reason:  # such as why it is RUNNABLE and nothing runs it, which comes later than the status
            phase, reason = f"{phase} ({reason})", ""
        return State(phase, tuple(self._log.new(stream)), code, reason)

    def _described(self, job: str, without: dict[str, Any] | None = None) -> dict[str, Any]:
        found = self._batch("describe_jobs", jobs=[job])["jobs"]
        if not found and without is None:
            raise ConflictError(f"AWS Batch knows no job {job} any more: it forgets them some days after their end.")
        return dict(found[0]) if found else without or {}


_REASONS = (
    (r"OutOfMemory", ConflictError, "give it more --memory, or train with a smaller --batch-size"),
    (r"duration exceeded timeout", ConflictError, "raise --timeout; the same command goes on from the checkpoint"),
    (r"^Host EC2", TransientError, "the machine was taken away more often than --retries allows: submit it again"),
    (
        r"CannotPullContainer|ImageNotFound|manifest unknown",
        ConflictError,
        "check --image, and that the machine may pull it",
    ),
    (
        r"ResourceInitializationError|CannotStartContainer|CannotCreateContainer",
        ConflictError,
        "check role and secrets",
    ),
    (r"^MISCONFIGURATION", ConflictError, "the queue has no machine for it: check --gpus, --cpus and --memory"),
    (r"DockerTimeout|Task failed to start|CannotInspectContainer", TransientError, "submit it again"),
)
"""A pattern of either reason, what it means, and what to do. The first that matches counts."""


def ended(job: Mapping[str, Any], main: Mapping[str, Any]) -> tuple[int | None, str]:
    """Our exit code for a described job, None while it has not ended, and the reason.

    `main` is the description of its main node, of a single container that of the job itself. An exit code of ours
    goes before what Batch says; a container that was killed (137) or has no code is explained by the reasons.
    """
    if job["status"] == "SUCCEEDED":
        return 0, ""
    if job["status"] != "FAILED":
        return None, str(job.get("statusReason") or "")
    container = _container_of(main)
    code = container.get("exitCode")
    said = "; ".join(dict.fromkeys(str(each) for each in (job.get("statusReason"), container.get("reason")) if each))
    if code is not None and code != 137:
        return our_code(int(code)), said or "its log says why"
    for pattern, kind, mend in _REASONS:
        if re.search(pattern, str(job.get("statusReason") or "")) or re.search(
            pattern, str(container.get("reason") or "")
        ):
            return kind.exit_code, f"{said}: {mend}"
    if code is None and (job.get("isTerminated") or job.get("isCancelled")):
        return Preempted.exit_code, said or "it was terminated"
    return (JobError.exit_code if code is None else our_code(int(code))), said or "AWS Batch gives no reason"


def _container_of(main: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last attempt's container: that of the job is of the last attempt too, but may lack the code."""
    attempts = main.get("attempts") or []
    last = (attempts[-1].get("container") or {}) if attempts else {}
    own = main.get("container") or {}
    return {name: own.get(name, last.get(name)) for name in ("exitCode", "reason")}
