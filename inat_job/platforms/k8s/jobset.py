"""The JobSet in place of an Indexed Job of several machines, which start again together at the cost of one restart.

https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/
"""

import re
from typing import Any

from inat_job.errors import UsageError
from inat_job.platforms.submission import SubmitOptions

Manifest = dict[str, Any]

KIND = "JobSet"
_NAME = re.compile("[a-z]([a-z0-9-]{0,46}[a-z0-9])?")
"""JobSet limits the names of its pods, <name>-m-0-1023-abcde, to 63 characters, and they must begin with a letter."""

FIXED = {"spec.backoffLimit": "which a JobSet needs to be 0: use --retries"}
"""What --patch may not change of the Job either, by path, with the reason."""


def check(request: SubmitOptions) -> None:
    """Raise UsageError for what a JobSet cannot do."""
    if request.nodes == 1:
        raise UsageError("--jobset is given and --nodes is 1: give the number of machines, or leave --jobset out.")
    if request.timeout is not None:
        raise UsageError(
            "--timeout and --jobset are both given, and a JobSet can only limit each restart: use --max-time of the "
            "command."
        )
    if not _NAME.fullmatch(str(request.name)):
        raise UsageError(
            f"--jobset is given, and the name is {request.name!r}: use a --name that begins with a letter and has at "
            "most 48 characters."
        )


def job_in(jobset: Manifest) -> Manifest:
    """The changes to the Job, as a patch."""
    [replicated] = jobset["spec"]["replicatedJobs"]
    return {"spec": replicated["template"]["spec"]}


def wrapped(job: Manifest, jobset: Manifest, retries: int | None) -> Manifest:
    """The JobSet with this Job in it, which gives it its name, labels, annotations and time to live."""
    [replicated] = jobset["spec"]["replicatedJobs"]
    spec = {key: value for key, value in job["spec"].items() if key != "ttlSecondsAfterFinished"}
    kept = {key: value for key, value in job["spec"].items() if key not in spec}
    policy = jobset["spec"]["failurePolicy"]
    return {
        **{"apiVersion": jobset["apiVersion"], "kind": KIND, "metadata": job["metadata"]},
        "spec": {
            **jobset["spec"],
            **kept,
            "failurePolicy": {**policy, "maxRestarts": policy["maxRestarts"] if retries is None else retries},
            # Not the JobSet's name: the Service of a Job of that name may be there.
            "network": {**jobset["spec"]["network"], "subdomain": f"{job['metadata']['name']}-{KIND.lower()}"},
            "replicatedJobs": [{**replicated, "template": {"spec": spec}}],
        },
    }
