"""`submit k8s`: the Job manifest of k8s/ with the requested changes, sent by kubectl. The only module with yaml."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import inat_job
from inat_job.errors import ConflictError, UsageError
from inat_job.platforms.k8s.job_watch import KubernetesJob
from inat_job.platforms.k8s.kubectl import AlreadyExistsError, Kubectl
from inat_job.platforms.submission import Command, SubmitOptions, lasting_output, refuse_unused

FOLDER = Path(inat_job.__file__).parents[1] / "k8s"
"""Beside entrypoint.py, both in a checkout and in the image."""

Manifest = dict[str, Any]

NEEDS = ("image", "role")

_LABEL = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"
_NAMES = (("--namespace", "namespace", r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"), ("--queue", "queue", _LABEL))
_ROLE = r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+|<ROLE>"
_LABEL_KEY = r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"

_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_GPU = "nvidia.com/gpu"
_QUEUE = "kueue.x-k8s.io/queue-name"
# Label and value of Spot nodes (Karpenter, EKS, Google, Azure), and whether these nodes are also tainted with it.
_SPOT = (
    ("karpenter.sh/capacity-type", "spot", False),
    ("eks.amazonaws.com/capacityType", "SPOT", False),
    ("cloud.google.com/gke-spot", "true", True),
    ("kubernetes.azure.com/scalesetpriority", "spot", True),
)


def build(request: SubmitOptions, command: Command) -> list[Manifest]:
    """ServiceAccount and Job and, for several machines, the Service between them. Raises UsageError."""
    refuse_unused(request, "k8s")
    _check(request)
    account, job = read_manifest("base/service-account.yaml"), read_manifest("base/job.yaml")
    account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] = request.role
    if request.nodes > 1:
        job = merge(job, read_manifest("nodes/job.yaml"))
    if command.sweep:
        job = merge(job, read_manifest("sweep/job.yaml"))
    job = merge(job, {"metadata": _metadata(request), "spec": _spec(request, command)})
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    if lasting_output(request, command) is None:  # the command itself has an --output, or needs none
        container["env"] = [each for each in container["env"] if each["name"] != "INAT_OUTPUT"]
    _set_nodes(pod, request)
    _set_resources(pod, request)
    service = [_service(request)] if request.nodes > 1 else []
    manifests = [account, *service, job]
    for each in manifests if request.namespace else ():
        each["metadata"]["namespace"] = request.namespace
    return manifests


def as_text(documents: list[Manifest]) -> str:
    """YAML that `kubectl create -f` takes."""
    return str(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120))


def submit(request: SubmitOptions, documents: list[Manifest]) -> KubernetesJob:
    """Apply what may exist already, and create the Job. Raises JobError."""
    kubectl = Kubectl(request.namespace)
    *others, job = documents
    try:
        kubectl.run("apply", "-f", "-", stdin=as_text(others))
        kubectl.run("create", "-f", "-", stdin=as_text([job]))
    except AlreadyExistsError:
        raise ConflictError(
            f"The Job {request.name} already exists: `kubectl delete job {request.name}` and submit it again to resume "
            "the run, or choose another --name."
        ) from None
    return KubernetesJob(str(request.name), kubectl)


def read_manifest(name: str, folder: Path = FOLDER) -> Manifest:
    """The only manifest in a file. Raises ConflictError if it cannot be read."""
    path = folder / name
    try:
        manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConflictError(f"The manifest {path} cannot be read ({reason}): restore it from the release.") from None
    if not isinstance(manifest, dict):
        raise ConflictError(f"The manifest {path} contains no object: restore it from the release.")
    return manifest


def merge(manifest: Any, patch: Any) -> Any:
    """The manifest with a patch applied as kustomize's strategic merge does: lists of named items merge by name.

    https://kubectl.docs.kubernetes.io/references/kustomize/glossary/#patchstrategicmerge
    """
    if isinstance(manifest, Mapping) and isinstance(patch, Mapping):
        return {**manifest, **{key: merge(manifest.get(key), value) for key, value in patch.items()}}
    if _has_names(manifest) and _has_names(patch):
        old, new = ({each["name"]: each for each in items} for items in (manifest, patch))
        return [merge(old.get(name), new.get(name, old.get(name))) for name in {**old, **new}]
    return patch


def _has_names(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(each, Mapping) and "name" in each for each in items)


def _check(request: SubmitOptions) -> None:
    """Raise UsageError for what Kubernetes would refuse or could not do."""
    for flag, field, pattern in (*_NAMES, ("--instance-type", "instance_type", _LABEL), ("--role", "role", _ROLE)):
        value = getattr(request, field)
        if value is not None and not re.fullmatch(pattern, value):
            raise UsageError(f"{flag} is {value!r}: it must match {pattern.removesuffix('|<ROLE>')}.")
    for key, value in request.labels.items():
        if not (re.fullmatch(_LABEL_KEY, key) and re.fullmatch(_LABEL, value)):
            raise UsageError(f"--tags has {key}={value}, which is no valid label: use letters, digits, - _ . in both.")
    if request.memory is not None and request.memory < 4:
        raise UsageError(f"--memory is {request.memory}, of which /dev/shm takes up to 2: set at least 4.")


def _metadata(request: SubmitOptions) -> Manifest:
    queue = {_QUEUE: request.queue} if request.queue else {}
    return {"name": request.name, "labels": {**request.labels, **queue}}


def _spec(request: SubmitOptions, command: Command) -> Manifest:
    """The requested changes to the Job's spec, as a patch."""
    output = lasting_output(request, command)
    variables = {
        "INAT_OUTPUT": output,
        "INAT_NUM_NODES": str(request.nodes) if request.nodes > 1 else None,
        "AWS_REGION": request.region,
    }
    container = {
        "name": "job",
        "image": request.image,
        "args": [word.replace("$", "$$") for word in command.words],  # Kubernetes expands $(NAME), even for secrets
        "env": [{"name": name, "value": value} for name, value in variables.items() if value],
    }
    spec: Manifest = {"template": {"metadata": {"labels": request.labels}, "spec": {"containers": [container]}}}
    if request.retries is not None:
        spec["backoffLimitPerIndex" if command.sweep else "backoffLimit"] = request.retries
    if request.timeout is not None:
        spec["activeDeadlineSeconds"] = int(request.timeout)
    if request.nodes > 1:
        spec |= {"completions": request.nodes, "parallelism": request.nodes}
        spec["template"]["spec"]["subdomain"] = request.name
    if command.sweep:
        spec |= {"completions": request.workers, "parallelism": request.workers}
    return spec


def _service(request: SubmitOptions) -> Manifest:
    service = read_manifest("nodes/service.yaml")
    service["metadata"]["name"] = request.name
    service["spec"]["selector"] = {"batch.kubernetes.io/job-name": request.name}
    return service


def _set_nodes(pod: Manifest, request: SubmitOptions) -> None:
    """The nodes that the pod may run on: by instance type, and Spot nodes only if requested."""
    selector = pod.pop("nodeSelector")
    if request.instance_type:
        pod["nodeSelector"] = {**selector, _INSTANCE_TYPE: request.instance_type}
    if request.spot:
        terms = [{"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]} for key, value, _ in _SPOT]
        affinity = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        pod["affinity"] = {"nodeAffinity": affinity}
        pod["tolerations"] += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value, is_tainted in _SPOT
            if is_tainted
        ]


def _set_resources(pod: Manifest, request: SubmitOptions) -> None:
    """Processors, memory, GPUs and disk of the container."""
    [container] = pod["containers"]
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    limits[_GPU] = str(request.gpus)
    if not request.gpus:
        del limits[_GPU]
        pod["tolerations"] = [each for each in pod["tolerations"] if each["key"] != _GPU]
    if request.cpus:
        requests["cpu"] = str(request.cpus)
    if request.memory:
        requests["memory"] = limits["memory"] = f"{request.memory}Gi"
    if request.disk:
        scratch = next(volume for volume in pod["volumes"] if volume["name"] == "scratch")
        scratch["emptyDir"]["sizeLimit"] = requests["ephemeral-storage"] = f"{request.disk}Gi"
