"""`submit k8s`: the Job manifest of k8s/, changed as requested, sent by kubectl. The only module that imports yaml."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import inat_job
from inat_job.errors import ConflictError, UsageError
from inat_job.platforms.k8s.job_watch import Watched
from inat_job.platforms.k8s.kubectl import AlreadyExistsError, Kubectl
from inat_job.platforms.submission import Command, SubmitOptions, lasting_output, refuse_unused

FOLDER = Path(inat_job.__file__).parents[1] / "k8s"
"""Beside entrypoint.py, in a checkout and in the image."""

Manifest = dict[str, Any]


def read(name: str, folder: Path = FOLDER) -> Manifest:
    """A file with one manifest. Raises ConflictError where it can't be read."""
    path = folder / name
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConflictError(f"The manifest {path} can't be read ({reason}): take it from the release anew.") from None
    if not isinstance(found, dict):
        raise ConflictError(f"The manifest {path} holds no object: take it from the release anew.")
    return found


def patched(whole: Any, patch: Any) -> Any:
    """`whole` with what the patch says, as kustomize's strategic merge does it, whose lists of things with names merge.

    https://kubectl.docs.kubernetes.io/references/kustomize/glossary/#patchstrategicmerge
    """
    if isinstance(whole, Mapping) and isinstance(patch, Mapping):
        return {**whole, **{key: patched(whole.get(key), value) for key, value in patch.items()}}
    if _named(whole) and _named(patch):
        old, new = ({each["name"]: each for each in items} for items in (whole, patch))
        return [patched(old.get(name), new.get(name, old.get(name))) for name in {**old, **new}]
    return patch


def text(manifests: list[Manifest]) -> str:
    """What `kubectl apply -f` takes."""
    return str(yaml.safe_dump_all(manifests, sort_keys=False, allow_unicode=True, width=120))


def _named(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(each, Mapping) and "name" in each for each in items)


NEEDS = ("image", "role")

_LABEL = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"
_NAMES = (("--namespace", "namespace", r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"), ("--queue", "queue", _LABEL))
_ROLE = r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+|<ROLE>"
_LABEL_KEY = r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"

_MACHINE = "node.kubernetes.io/instance-type"
_GPU = "nvidia.com/gpu"
_QUEUE = "kueue.x-k8s.io/queue-name"
# How EKS, Karpenter, Google and Azure mark spare machines; the first two leave them open to everybody.
_SPARE = (
    ("karpenter.sh/capacity-type", "spot", False),
    ("eks.amazonaws.com/capacityType", "SPOT", False),
    ("cloud.google.com/gke-spot", "true", True),
    ("kubernetes.azure.com/scalesetpriority", "spot", True),
)


def build(request: SubmitOptions, command: Command) -> list[Manifest]:
    """ServiceAccount and Job and, for several machines, the Service between them. Raises UsageError."""
    refuse_unused(request, "k8s")
    _check(request)
    account, job = read("base/service-account.yaml"), read("base/job.yaml")
    account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] = request.role
    if request.nodes > 1:
        job = patched(job, read("nodes/job.yaml"))
    job = patched(job, {"metadata": _metadata(request), "spec": _spec(request, command)})
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    if lasting_output(request, command) is None:  # the command says it, or needs none
        container["env"] = [each for each in container["env"] if each["name"] != "INAT_OUTPUT"]
    _choose_machines(pod, request)
    _size(pod, request)
    between = [_service(request)] if request.nodes > 1 else []
    made = [account, *between, job]
    for each in made if request.namespace else ():
        each["metadata"]["namespace"] = request.namespace
    return made


def as_text(documents: list[Manifest]) -> str:
    """YAML that `kubectl create -f` takes."""
    return text(documents)


def submit(request: SubmitOptions, documents: list[Manifest]) -> Watched:
    """Apply what may be there already, and create the Job. Raises JobError."""
    kubectl = Kubectl(request.namespace)
    *around, job = documents
    try:
        kubectl.run("apply", "-f", "-", given=text(around))
        kubectl.run("create", "-f", "-", given=text([job]))
    except AlreadyExistsError:
        raise ConflictError(
            f"The Job {request.name} exists already: `kubectl delete job {request.name}` and submit it again, then the "
            "run goes on where it was; or choose another --name."
        ) from None
    return Watched(str(request.name), kubectl)


def _check(request: SubmitOptions) -> None:
    """Raise UsageError for what Kubernetes would refuse, or would not know how to do."""
    for flag, field, pattern in (*_NAMES, ("--instance-type", "instance_type", _LABEL), ("--role", "role", _ROLE)):
        value = getattr(request, field)
        if value is not None and not re.fullmatch(pattern, value):
            raise UsageError(f"{flag} is {value!r}: it must match {pattern.removesuffix('|<ROLE>')}.")
    for key, value in request.labels.items():
        if not (re.fullmatch(_LABEL_KEY, key) and re.fullmatch(_LABEL, value)):
            raise UsageError(f"--tags has {key}={value}, which can be no label: use letters, digits, - _ . in both.")
    if request.memory is not None and request.memory < 4:
        raise UsageError(f"--memory is {request.memory}: /dev/shm takes up to 2 of it, so give at least 4.")


def _metadata(request: SubmitOptions) -> Manifest:
    queue = {_QUEUE: request.queue} if request.queue else {}
    return {"name": request.name, "labels": {**request.labels, **queue}}


def _spec(request: SubmitOptions, command: Command) -> Manifest:
    """What the request changes in the Job's spec, as a patch."""
    output = lasting_output(request, command)
    variables = {
        "INAT_OUTPUT": output,
        "INAT_NUM_NODES": str(request.nodes) if request.nodes > 1 else None,
        "AWS_REGION": request.region,
    }
    container = {
        "name": "job",
        "image": request.image,
        "args": [word.replace("$", "$$") for word in command.words],  # Kubernetes fills $(NAME) in, secrets too
        "env": [{"name": name, "value": value} for name, value in variables.items() if value],
    }
    spec: Manifest = {"template": {"metadata": {"labels": request.labels}, "spec": {"containers": [container]}}}
    if request.retries is not None:
        spec["backoffLimit"] = request.retries
    if request.timeout is not None:
        spec["activeDeadlineSeconds"] = int(request.timeout)
    if request.nodes > 1:
        spec |= {"completions": request.nodes, "parallelism": request.nodes}
        spec["template"]["spec"]["subdomain"] = request.name
    return spec


def _service(request: SubmitOptions) -> Manifest:
    service = read("nodes/service.yaml")
    service["metadata"]["name"] = request.name
    service["spec"]["selector"] = {"batch.kubernetes.io/job-name": request.name}
    return service


def _choose_machines(pod: Manifest, request: SubmitOptions) -> None:
    chosen = pod.pop("nodeSelector")
    if request.instance_type:
        pod["nodeSelector"] = {**chosen, _MACHINE: request.instance_type}
    if request.spot:
        terms = [{"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]} for key, value, _ in _SPARE]
        wanted = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        pod["affinity"] = {"nodeAffinity": wanted}
        pod["tolerations"] += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value, tainted in _SPARE
            if tainted
        ]


def _size(pod: Manifest, request: SubmitOptions) -> None:
    """Processors, memory, GPUs and disk of the container."""
    [container] = pod["containers"]
    wanted, limits = container["resources"]["requests"], container["resources"]["limits"]
    limits[_GPU] = str(request.gpus)
    if not request.gpus:
        del limits[_GPU]
        pod["tolerations"] = [each for each in pod["tolerations"] if each["key"] != _GPU]
    if request.cpus:
        wanted["cpu"] = str(request.cpus)
    if request.memory:
        wanted["memory"] = limits["memory"] = f"{request.memory}Gi"
    if request.disk:
        scratch = next(volume for volume in pod["volumes"] if volume["name"] == "scratch")
        scratch["emptyDir"]["sizeLimit"] = wanted["ephemeral-storage"] = f"{request.disk}Gi"
