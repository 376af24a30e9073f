"""What a pod of a Kubernetes Job can know: by variables, the downward API's files and its own hosts file.

The manifest names the job, in the variable KUBERNETES_JOB_NAME or by a downward API volume at /etc/podinfo with
`labels` and `annotations`. The pod's own name changes with every attempt, and so names nothing.
https://kubernetes.io/docs/concepts/workloads/pods/downward-api/
"""

import json
from collections.abc import Mapping
from pathlib import Path

from inat_job.errors import ConflictError
from inat_job.platforms.platform import Platform, first, run_id_of, whole

NAME = "Kubernetes"

GRACE_S = 30.0
"""Seconds of terminationGracePeriodSeconds unless the manifest says otherwise; a pod can't read its own."""

TERMINATION_LOG = "dev/termination-log"
_SERVICE_ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"
_POD_INFO = "etc/podinfo"
_JOB_LABELS = ("batch.kubernetes.io/job-name", "job-name")
# How often it was tried before: of an index with backoffLimitPerIndex, of a JobSet.
_FAILURES = ("batch.kubernetes.io/job-index-failure-count", "jobset.sigs.k8s.io/restart-attempt")
_INDEX = "JOB_COMPLETION_INDEX"
# Ours, and torchrun's as Kubeflow's TrainJob sets them; a plain Indexed Job tells nobody how many it is.
_WORLDS, _RANKS = ("INAT_NUM_NODES", "PET_NNODES"), ("PET_NODE_RANK", _INDEX)
_MASTERS = ("MASTER_ADDR", "PET_MASTER_ADDR")


def place(environment: Mapping[str, str], root: Path = Path("/")) -> Platform | None:
    """What the pod knows, or None where this is no pod. Raises ConflictError for what contradicts itself."""
    if not environment.get("KUBERNETES_SERVICE_HOST") and not (root / _SERVICE_ACCOUNT).is_dir():
        return None
    known = {**_pod_info(root / _POD_INFO / "annotations"), **_pod_info(root / _POD_INFO / "labels")}
    world = first(environment, _WORLDS) or 1
    return Platform(
        name=NAME,
        run_id=run_id_of(_job(environment, known, world)),
        attempt=_attempt(known),
        rank=_rank(environment, world),
        world=world,
        master=_master(environment, root) if world > 1 else None,
        grace_s=GRACE_S,
        failure=root / TERMINATION_LOG,
    )


def _job(environment: Mapping[str, str], known: Mapping[str, str], world: int) -> str:
    """The job's name: an index is a run of its own unless all of them are the machines of one."""
    labelled = next((known[label] for label in _JOB_LABELS if label in known), "")
    job, index = environment.get("KUBERNETES_JOB_NAME") or labelled, whole(environment, _INDEX)
    return f"{job}-{index}" if job and index is not None and world == 1 else job


def _attempt(known: Mapping[str, str]) -> int | None:
    failures = [whole(known, name) for name in _FAILURES]
    return next((failed + 1 for failed in failures if failed is not None), None)


def _rank(environment: Mapping[str, str], world: int) -> int:
    if world == 1:
        return 0
    rank = first(environment, _RANKS)
    if rank is None or rank >= world:
        raise ConflictError(
            f"This run has {world} machines and this one's number ({' or '.join(_RANKS)}) is {rank}: use an Indexed "
            "Job with as many completions."
        )
    return rank


def _master(environment: Mapping[str, str], root: Path) -> str | None:
    """The host of rank 0: the one that the manifest names, or index 0 beside this pod in the Job's headless Service.

    The pods of an Indexed Job are called <job>-<index>, and each has its whole name in its hosts file:
    https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/
    """
    for name in _MASTERS:
        if environment.get(name):
            return environment[name]
    own, index = _text(root / "etc" / "hostname").strip(), environment.get(_INDEX, "")
    stem = own.removesuffix(f"-{index}")
    if not index or stem == own:
        return None
    names = [name for line in _text(root / "etc" / "hosts").splitlines() for name in line.partition("#")[0].split()[1:]]
    return next((f"{stem}-0{name.removeprefix(own)}" for name in names if name.startswith(f"{own}.")), None)


def _pod_info(path: Path) -> dict[str, str]:
    """What the downward API wrote: a line for each, as key="value"."""
    found = {}
    for line in _text(path).splitlines():
        key, _, quoted = line.partition("=")
        try:
            value = json.loads(quoted)
        except ValueError:  # an annotation of somebody's with escapes that are Go's alone
            continue
        found[key] = str(value)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
