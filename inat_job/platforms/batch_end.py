"""What the end of an AWS Batch job means: its status, exit code and reasons as one of our exit codes and a sentence.

https://docs.aws.amazon.com/batch/latest/userguide/troubleshooting.html
"""

import re
from collections.abc import Mapping
from typing import Any

from inat_job.errors import ConflictError, JobError, Preempted, TransientError
from inat_job.platforms.submission import our_code

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
    container = _container(main)
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


def _container(main: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last attempt's container: that of the job is of the last attempt too, but may lack the code."""
    attempts = main.get("attempts") or []
    last = (attempts[-1].get("container") or {}) if attempts else {}
    own = main.get("container") or {}
    return {name: own.get(name, last.get(name)) for name in ("exitCode", "reason")}
