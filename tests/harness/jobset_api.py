"""What the API server and JobSet's webhook check of a JobSet: fields, types and names.

Written after the CRD jobset.x-k8s.io/v1alpha2 of JobSet 0.10 to 0.12, as far as the job uses it; the Job inside is
checked against Kubernetes' own schema. https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/
"""

import re
from typing import Any

import jsonschema
import kubernetes_validate

TEXTS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    """An object with these fields only, as strict validation has it."""
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


RULE = closed(
    *("name", "action"),
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "maxLength": 128},
    action={"enum": [*ACTIONS, "RestartJob", "RestartJobAndIgnoreMaxRestarts"]},
    onJobFailureReasons={**TEXTS, "items": {"enum": [*REASONS]}},
    onJobFailureMessagePatterns=TEXTS,
    targetReplicatedJobs=TEXTS,
)
POLICY = closed(
    maxRestarts=COUNT,
    restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
    rules={"type": "array", "items": RULE},
)
NETWORK = closed(
    enableDNSHostnames={"type": "boolean"}, publishNotReadyAddresses={"type": "boolean"}, subdomain={"type": "string"}
)
REPLICATED = closed(
    *("name", "template"),
    name={"type": "string"},
    replicas=COUNT,
    template=closed(metadata={"type": "object"}, spec={"type": "object"}),
)
SCHEMA = closed(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata={"type": "object"},
    spec=closed(
        failurePolicy=POLICY,
        network=NETWORK,
        replicatedJobs={"type": "array", "items": REPLICATED},
        suspend={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
    ),
)
_LABEL = re.compile("[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def job_in(jobset: dict[str, Any]) -> dict[str, Any]:
    """The only Job in a JobSet, as the controller makes it."""
    [replicated] = jobset["spec"]["replicatedJobs"]
    metadata = {"name": f"{jobset['metadata']['name']}-{replicated['name']}-0"}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": replicated["template"]["spec"]}


def check_jobset(jobset: dict[str, Any], version: str = "1.32") -> None:
    """Raise ValueError, or what the validators raise, for what the cluster would refuse."""
    jsonschema.validate(jobset, SCHEMA)
    job = job_in(jobset)
    kubernetes_validate.validate(job, version, strict=True)
    last_pod = f"{job['metadata']['name']}-{job['spec']['completions'] - 1}-abcde"
    for name in (last_pod, jobset["spec"]["network"]["subdomain"]):
        if not _LABEL.fullmatch(name):
            raise ValueError(f"{name} is no label of at most 63 characters that begins with a letter")
