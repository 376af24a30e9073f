"""What a pod of a Kubernetes Job knows: environment variables, the downward API's files and its hosts file.

The manifest passes the Job's name, as the variable KUBERNETES_JOB_NAME or as a downward API volume at /etc/podinfo with
`labels` and `annotations`. The pod's own name changes with every attempt, so it names nothing here.
https://kubernetes.io/docs/concepts/workloads/pods/downward-api/
"""

from collections.abc import Mapping
from pathlib import Path

from inat_job.errors import ConflictError
from inat_job.host.system_files import read_text
from inat_job.platforms.platform import Platform, first_int, read_int, run_id_from
from inat_job.storage.disk import parse_json

NAME = "Kubernetes"

GRACE_S = 30.0
"""The default of terminationGracePeriodSeconds; a pod cannot read its own, so the manifest must pass any other."""

SPOT_VARIABLE = "INAT_JOB_SPOT"
"""The variable by which the manifest says that the pod runs on a Spot machine only."""

# Seconds from SIGTERM until a Spot machine is gone, by the vendor that it names. Google: what the kubelet gives to
# pods, of the machine's 30 s. The others: the notice, 30 s and 120 s, less what a controller needs to see it and drain.
_SPOT_GRACE_S = {"Google": 15.0, "Microsoft Corporation": 25.0, "Amazon EC2": 110.0}
_VENDOR = "sys/devices/virtual/dmi/id/sys_vendor"

TERMINATION_LOG = "dev/termination-log"
_SERVICE_ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"
_POD_INFO = "etc/podinfo"
_JOB_LABELS = ("batch.kubernetes.io/job-name", "job-name")
# Failed attempts so far: of an index with backoffLimitPerIndex, of a JobSet.
_FAILURES = ("batch.kubernetes.io/job-index-failure-count", "jobset.sigs.k8s.io/restart-attempt")
_INDEX = "JOB_COMPLETION_INDEX"
# Our variables, then torchrun's as Kubeflow's TrainJob sets them. An Indexed Job does not say how many pods it has.
_NUM_NODES, _NODE_RANK = ("INAT_NUM_NODES", "PET_NNODES"), ("PET_NODE_RANK", _INDEX)
_MASTER_ADDRESS = ("MASTER_ADDR", "PET_MASTER_ADDR")


def detect_kubernetes(environment: Mapping[str, str], root: Path = Path("/")) -> Platform | None:
    """The platform as the pod knows it, None outside of a pod. Raises ConflictError for contradicting variables."""
    if not environment.get("KUBERNETES_SERVICE_HOST") and not (root / _SERVICE_ACCOUNT).is_dir():
        return None
    info = {**_read_pod_info(root / _POD_INFO / "annotations"), **_read_pod_info(root / _POD_INFO / "labels")}
    num_nodes = first_int(environment, _NUM_NODES) or 1
    return Platform(
        name=NAME,
        run_id=run_id_from(_job_name(environment, info, num_nodes)),
        attempt=_attempt(info),
        node_rank=_node_rank(environment, num_nodes),
        num_nodes=num_nodes,
        master_address=_master_address(environment, root) if num_nodes > 1 else None,
        grace_s=_grace_s(environment, root),
    )


def _grace_s(environment: Mapping[str, str], root: Path) -> float:
    if not environment.get(SPOT_VARIABLE):
        return GRACE_S
    return _SPOT_GRACE_S.get(read_text(root / _VENDOR).strip(), GRACE_S)


def _job_name(environment: Mapping[str, str], info: Mapping[str, str], num_nodes: int) -> str:
    """The Job's name. Each index of an Indexed Job is its own run, unless all of them are the machines of one run."""
    label = next((info[name] for name in _JOB_LABELS if name in info), "")
    job, index = environment.get("KUBERNETES_JOB_NAME") or label, read_int(environment, _INDEX)
    return f"{job}-{index}" if job and index is not None and num_nodes == 1 else job


def _attempt(info: Mapping[str, str]) -> int | None:
    failures = [read_int(info, name) for name in _FAILURES]
    return next((failed + 1 for failed in failures if failed is not None), None)


def _node_rank(environment: Mapping[str, str], num_nodes: int) -> int:
    if num_nodes == 1:
        return 0
    node_rank = first_int(environment, _NODE_RANK)
    if node_rank is None or node_rank >= num_nodes:
        raise ConflictError(
            f"This run has {num_nodes} machines, and the number of this one ({' or '.join(_NODE_RANK)}) is "
            f"{node_rank}: use an Indexed Job with {num_nodes} completions."
        )
    return node_rank


def _master_address(environment: Mapping[str, str], root: Path) -> str | None:
    """The host of node rank 0: the one that the manifest names, or index 0 in this Job's headless Service.

    The pods of an Indexed Job are called <job>-<index>, and each has its own full name in its hosts file:
    https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/
    """
    for name in _MASTER_ADDRESS:
        if environment.get(name):
            return environment[name]
    hostname, index = read_text(root / "etc" / "hostname").strip(), environment.get(_INDEX, "")
    stem = hostname.removesuffix(f"-{index}")
    if not index or stem == hostname:
        return None
    lines = read_text(root / "etc" / "hosts").splitlines()
    names = [name for line in lines for name in line.partition("#")[0].split()[1:]]
    return next((f"{stem}-0{name.removeprefix(hostname)}" for name in names if name.startswith(f"{hostname}.")), None)


def _read_pod_info(path: Path) -> dict[str, str]:
    """The labels or annotations that the downward API wrote, one key="value" a line."""
    info = {}
    for line in read_text(path).splitlines():
        key, _, quoted = line.partition("=")
        try:
            value = parse_json(quoted)
        except ValueError:  # another tool's annotation, with escapes that only Go knows
            continue
        info[key] = str(value)
    return info
