"""What the end of a training job means: its status and FailureReason as one of our exit codes and a sentence.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html
"""

import re
from collections.abc import Mapping
from typing import Any

from inat_job.errors import BadDataError, ConflictError, JobError, NoPermissionError, Preempted, TransientError
from inat_job.platforms.submission import our_code

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
