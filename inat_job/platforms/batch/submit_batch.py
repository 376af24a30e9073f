"""`submit batch`: the requests for an AWS Batch job definition and a job, and the exit code of the job's status.

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
from inat_job.platforms.submit_values import INT32, ROLE, check_maxima, check_patterns
from inat_job.platforms.yaml_patch import patched, read_patch

NEEDS = ("image", "role", "queue")

ATTEMPTS = 10
"""The maximum of Batch; each preemption counts as one attempt."""

LOG_GROUP = "/aws/batch/job"

_PATTERNS = {
    **dict.fromkeys(("role", "execution_role"), ROLE),
    "queue": r"[\w-]{1,128}|arn:aws[a-z-]*:batch:[a-z0-9-]+:\d{12}:job-queue/[\w-]{1,128}",
    "instance_type": r"[a-z0-9-]+\.[a-z0-9-]+",
}
"""What Batch accepts for an option, by field.

https://docs.aws.amazon.com/batch/latest/APIReference/API_ContainerProperties.html
https://docs.aws.amazon.com/batch/latest/APIReference/API_CreateJobQueue.html
"""

_MAXIMA = {"retries": ATTEMPTS - 1, **dict.fromkeys(("timeout", "cpus"), INT32), "memory": INT32 // 1024}
"""The largest numbers by field; processors and MiB are integers of 32 bits."""

_OPERATIONS = ("RegisterJobDefinition", "SubmitJob")
_COMMAND = "which is the command: give it after --"
_OVERRIDE = "which overrides the definition: patch RegisterJobDefinition"
_FIXED = {
    "jobDefinitionName": "which names the definition: use --name",
    "type": "which is decided by --nodes: use it",
    "containerProperties.command": _COMMAND,
    "nodeProperties.nodeRangeProperties.0.container.command": _COMMAND,
    "nodeProperties.numNodes": "which is --nodes: use it",
    "retryStrategy.evaluateOnExit": "which retries by the job's exit codes: leave it out",
}
_FIXED_OF_JOB = {
    "jobName": "which names the run: use --name",
    "jobQueue": "which is --queue: use it",
    "jobDefinition": "which names the definition: use --name",
    "arrayProperties": "which is --workers: use it",
    **dict.fromkeys(("containerOverrides", "nodeOverrides", "retryStrategy"), _OVERRIDE),
}
"""What --patch may not change, by path, with the reason."""

_CPUS, _MEMORY_GIB = 4, 14  # per GPU: what Batch can allocate on a g5.xlarge and a g4dn.xlarge
_SHARED_MIB = 1024  # per GPU, for NCCL; there are no data loader workers that would need more
_DIGEST_LENGTH = 8
_FLAT = ("resourceRequirements", "environment")  # lists without an order

RETRY = (
    {"onStatusReason": "Host EC2*", "action": "RETRY"},  # the instance was terminated
    {"onExitCode": "143", "action": "RETRY"},
    {"onExitCode": "75", "action": "RETRY"},
    {"onReason": "*", "action": "EXIT"},  # without this rule, everything else would be retried too
)
"""The first match counts; Batch allows five rules. 137 has none: on a machine that stays it is out of memory, and the
same command would fail again."""


def build(request: SubmitOptions, command: Command) -> list[dict[str, Any]]:
    """The requests of RegisterJobDefinition and SubmitJob. Raises UsageError for what Batch would refuse or ignore."""
    refuse_unused(request, "batch", {} if request.nodes > 1 else {"instance_type": "the queue chooses it"})
    check_patterns(request, _PATTERNS)
    check_maxima(request, _MAXIMA, "AWS Batch")
    container = _container(request, _job_command(request, command))
    attempts = 1 + (ATTEMPTS - 1 if request.retries is None else request.retries)
    definition: dict[str, Any] = {
        **_definition(request, container),
        "retryStrategy": {"attempts": attempts, "evaluateOnExit": list(RETRY)},
        "tags": request.labels,
        "propagateTags": True,
    }
    if request.timeout:
        definition["timeout"] = {"attemptDurationSeconds": round(request.timeout)}
    of_definition, of_job = _patches(request)
    definition = patched(definition, of_definition, _FIXED)
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:_DIGEST_LENGTH]
    name = f"{request.name}-{digest}"
    job = {"jobName": request.name, "jobQueue": request.queue, "jobDefinition": name, "tags": request.labels}
    array = {"arrayProperties": {"size": request.workers}} if request.workers > 1 else {}
    job = patched({**job, **array, "propagateTags": True}, of_job, _FIXED_OF_JOB)
    documents = [{"jobDefinitionName": name, **definition}, job]
    request_models.check("batch", "RegisterJobDefinition", documents[0])
    request_models.check("batch", "SubmitJob", documents[1])
    return documents


def _patches(request: SubmitOptions) -> list[list[dict[str, Any]]]:
    """The patches for each of both requests. Raises UsageError for other keys than their operations."""
    documents = read_patch(request.patch)
    for each in documents:
        for operation, patch in each.items():
            if operation not in _OPERATIONS or not isinstance(patch, dict):
                names = " and ".join(_OPERATIONS)
                raise UsageError(f"--patch has {operation!r}: it must have objects under {names}, as --dry-run shows.")
    return [[each[operation] for each in documents if operation in each] for operation in _OPERATIONS]


def _job_command(request: SubmitOptions, command: Command) -> list[str]:
    """The command with an output and a run id, because the job's own id changes with every submission."""
    words = list(command.words)
    if output := lasting_output(request, command):
        words += ["--output", output]
    if command.run_id and "run.run_id" not in command.configuration.given:
        words += ["--run-id", str(request.name)]
    return words


def _container(request: SubmitOptions, command: list[str]) -> dict[str, Any]:
    gpus = max(1, request.gpus)  # without a GPU, the same machine as for one
    memory_mib = 1024 * (request.memory or _MEMORY_GIB * gpus)
    resources = {"VCPU": request.cpus or _CPUS * gpus, "MEMORY": memory_mib, "GPU": request.gpus}
    container: dict[str, Any] = {
        "image": request.image,
        "command": command,
        "jobRoleArn": request.role,
        "resourceRequirements": [{"type": kind, "value": str(value)} for kind, value in resources.items() if value],
        "linuxParameters": {"sharedMemorySize": min(_SHARED_MIB * gpus, memory_mib // 4)},
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {"awslogs-group": LOG_GROUP, "awslogs-stream-prefix": str(request.name)},
        },
        "environment": [{"name": name, "value": value} for name, value in _variables(request).items()],
    }
    if request.execution_role:
        container["executionRoleArn"] = request.execution_role
    return container


def _variables(request: SubmitOptions) -> dict[str, str]:
    return {**({"AWS_REGION": request.region} if request.region else {}), **request.variables}


def _definition(request: SubmitOptions, container: dict[str, Any]) -> dict[str, Any]:
    """A single container, or the same container on each node: then the job ends as node 0 does, and retries as one."""
    if request.nodes == 1:
        return {"type": "container", "containerProperties": container}
    if request.instance_type:
        container["instanceType"] = request.instance_type
    ranges = [{"targetNodes": f"0:{request.nodes - 1}", "container": container}]
    nodes = {"numNodes": request.nodes, "mainNode": 0, "nodeRangeProperties": ranges}
    return {"type": "multinode", "nodeProperties": nodes}


def as_text(documents: list[dict[str, Any]]) -> str:
    """Both requests as JSON by operation; `aws batch --cli-input-json` takes each."""
    return json.dumps(dict(zip(_OPERATIONS, documents, strict=True)), indent=2) + "\n"


def matches(found: Any, wanted: Any) -> bool:
    """Whether a definition that Batch returned has everything in `wanted`.

    Batch adds its defaults, and writes the actions in lower case.
    """
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            matches(_ordered(name, found.get(name)), _ordered(name, value)) or (found.get(name) is None and not value)
            for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(matches, found, wanted))
    return str(found).casefold() == wanted.casefold() if wanted in ("RETRY", "EXIT") else bool(found == wanted)


def _ordered(name: str, value: Any) -> Any:
    if name in _FLAT and isinstance(value, list):
        return sorted(value, key=lambda each: str(each.get("name") or each.get("type")))
    return value


def submit(request: SubmitOptions, documents: list[dict[str, Any]]) -> "BatchJob":
    """Register the definition unless its newest revision is the same, and submit the job unless it already runs.

    Raises JobError, in particular ConflictError if a job of this name runs with another definition.
    """
    from inat_job.platforms.aws import client  # boto3 loads slowly, and a dry run does not need it

    definition, job = documents
    batch = client.service("batch", request.region)
    name = definition["jobDefinitionName"]
    found = batch("describe_job_definitions", jobDefinitionName=name, status="ACTIVE")["jobDefinitions"]
    newest = max(found, key=lambda each: int(each["revision"]), default=None)
    if newest is None or not matches(newest, definition):
        newest = batch("register_job_definition", **definition)
    revision = f"{name}:{newest['revision']}"
    job_id = _running_job(batch, job, revision)
    if job_id:
        events.warn(f"AWS Batch job {job_id} already works on this run: no job was submitted.")
    else:
        job_id = str(batch("submit_job", **{**job, "jobDefinition": revision})["jobId"])
    events.emit("job", id=job_id, name=job["jobName"], definition=revision)
    return BatchJob(job_id, batch, client.LogTail(client.service("logs", request.region), LOG_GROUP))


def _running_job(batch: Any, job: dict[str, Any], revision: str) -> str | None:
    """The unfinished job of this name. A second one would only wait for the run's lease, on a paid machine."""
    by_name = [{"name": "JOB_NAME", "values": [job["jobName"]]}]
    for page in pages(batch, "list_jobs", "nextToken", jobQueue=job["jobQueue"], filters=by_name):
        for each in page["jobSummaryList"]:
            if each["jobName"] != job["jobName"] or each["status"] in ("SUCCEEDED", "FAILED"):
                continue
            if not str(each.get("jobDefinition", "")).endswith(f"/{revision}"):
                raise ConflictError(
                    f"AWS Batch job {each['jobId']} has this name but another definition: wait for it, or use --name."
                )
            return str(each["jobId"])
    return None


class BatchJob:
    """A submitted job."""

    def __init__(self, job_id: str, batch: Any, log: Any) -> None:
        self._id, self._batch, self._log = job_id, batch, log
        self.name = f"AWS Batch job {job_id}"

    def read_state(self) -> State:
        """The job's state, with the new lines of its main node's log. Raises JobError."""
        job = self._describe(self._id)
        main = job
        if "nodeProperties" in job:
            main = self._describe(f"{self._id}#{job['nodeProperties'].get('mainNode', 0)}", job)
        if "arrayProperties" in job:
            main = self._describe(self._child(job), job)
        stream = (main.get("container") or {}).get("logStreamName")
        code, reason = exit_code_of(job, main)
        phase = str(job["status"])
        if code is None and reason:  # such as why a RUNNABLE job does not start, which is known later than the status
            phase, reason = f"{phase} ({reason})", ""
        return State(phase, tuple(self._log.new(stream)), code, reason)

    def _child(self, job: Mapping[str, Any]) -> str:
        """The id of the array's child that says the most: one that failed, if the job did, or the first."""
        if job["status"] == "FAILED":
            failed = self._batch("list_jobs", arrayJobId=self._id, jobStatus="FAILED")["jobSummaryList"]
            if failed:
                return str(failed[0]["jobId"])
        return f"{self._id}:0"

    def _describe(self, job_id: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        found = self._batch("describe_jobs", jobs=[job_id])["jobs"]
        if not found and default is None:
            raise ConflictError(f"AWS Batch has no job {job_id}: it deletes jobs some days after they end.")
        return dict(found[0]) if found else default or {}


_REASONS = (
    (r"OutOfMemory", ConflictError, "raise --memory, or train with a smaller --batch-size"),
    (r"duration exceeded timeout", ConflictError, "raise --timeout; the same command resumes from the checkpoint"),
    (r"^Host EC2", TransientError, "the machine was taken away more often than --retries allows: submit it again"),
    (
        r"CannotPullContainer|ImageNotFound|manifest unknown",
        ConflictError,
        "check --image, and whether the machine may pull it",
    ),
    (
        r"ResourceInitializationError|CannotStartContainer|CannotCreateContainer",
        ConflictError,
        "check role and secrets",
    ),
    (r"^MISCONFIGURATION", ConflictError, "the queue has no machine for it: check --gpus, --cpus and --memory"),
    (r"DockerTimeout|Task failed to start|CannotInspectContainer", TransientError, "submit it again"),
)
"""A pattern for either of Batch's reasons, our error, and the fix. The first match counts."""


def exit_code_of(job: Mapping[str, Any], main: Mapping[str, Any]) -> tuple[int | None, str]:
    """Our exit code for a job's description, None while the job runs, and the reason.

    `main` is the description of the main node; for a single container, that of the job itself. An array is done with
    the first worker that exits 0, since the sweep is finished then. The container's exit code takes precedence over
    Batch's reasons, unless the container was killed (137) or has no exit code.
    """
    workers = (job.get("arrayProperties") or {}).get("statusSummary") or {}
    if job["status"] == "SUCCEEDED" or workers.get("SUCCEEDED"):
        return 0, ""
    if job["status"] != "FAILED":
        return None, str(job.get("statusReason") or "")
    container = _last_container(main)
    code = container.get("exitCode")
    reasons = [str(each) for each in (job.get("statusReason"), container.get("reason")) if each]
    reason = "; ".join(dict.fromkeys(reasons))
    if code is not None and code != 137:
        return our_code(int(code)), reason or "its log says why"
    for pattern, kind, fix in _REASONS:
        if any(re.search(pattern, each) for each in reasons):
            return kind.exit_code, f"{reason}: {fix}"
    if code is None and (job.get("isTerminated") or job.get("isCancelled")):
        return Preempted.exit_code, reason or "it was terminated"
    return (JobError.exit_code if code is None else our_code(int(code))), reason or "AWS Batch gives no reason"


def _last_container(main: Mapping[str, Any]) -> Mapping[str, Any]:
    """The container of the last attempt. The job's own container is the same one, but may lack the exit code."""
    attempts = main.get("attempts") or []
    last = (attempts[-1].get("container") or {}) if attempts else {}
    container = main.get("container") or {}
    return {name: container.get(name, last.get(name)) for name in ("exitCode", "reason")}
