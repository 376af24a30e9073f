"""`submit k8s`: the Job manifest of k8s/ with the requested changes, sent by kubectl."""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

import inat_job
from inat_job import events
from inat_job.errors import ConflictError, UsageError
from inat_job.platforms.k8s import job_watch, jobset
from inat_job.platforms.k8s.job_watch import KubernetesJob
from inat_job.platforms.k8s.kubectl import AlreadyExistsError, Kubectl, NotFoundError
from inat_job.platforms.k8s.pod import SPOT_VARIABLE
from inat_job.platforms.submission import Command, SubmitOptions, lasting_output, refuse_unused
from inat_job.platforms.submit_values import INT32, ROLE, check_maxima, check_patterns
from inat_job.platforms.yaml_patch import merge, patched, read_documents, read_patch

FOLDER = Path(inat_job.__file__).parent / "k8s"
"""A link to the folder beside entrypoint.py, both in a checkout and in the image; its files where pip installs them."""

Manifest = dict[str, Any]

NEEDS = ("image",)
_JOBSET = "nodes/jobset.yaml"

REQUEST = "inat-job/request"
"""The annotation with a digest of what was submitted, by which the same request is known again."""

_LABEL = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"
_OBJECT = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_PATTERNS = {
    "namespace": r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    "queue": _LABEL,
    "instance_type": _LABEL,
    "role": ROLE,
    "service_account": _OBJECT,
    "image_pull_secret": _OBJECT,
    "env_from_secret": _OBJECT,
}
"""What Kubernetes accepts for an option, by field."""

_MAXIMA = {
    "retries": INT32,
    "timeout": (2**63 - 1) // 10**9,
    "cpus": (2**63 - 1) // 1000,
    **dict.fromkeys(("memory", "disk"), (2**63 - 1) // 2**30),
}
"""The largest numbers by field: backoffLimit has 32 bits, and a time in nanoseconds or a quantity, which counts
thousandths of a processor and bytes, 63.

https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1/
https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

_OWN_MOUNTS = ("/", "/scratch", "/dev/shm")  # noqa: S108 (of the container)
_LABEL_KEY = r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"

_TOP_FIELDS: dict[str, tuple[str, ...]] = {
    "Job": ("kind", "metadata", "spec"),
    "Service": ("kind", "metadata", "spec"),
    "ServiceAccount": ("kind", "metadata", "imagePullSecrets", "automountServiceAccountToken"),
}
_DEFAULT_GRACE_S = 30

_NAMES = {
    "metadata.name": "which names the run: use --name",
    "metadata.namespace": "which is --namespace: use it",
}
_BY_CODE = "by which the job's exit codes are retried or not: leave it out"
_MACHINES = "which is --nodes or --workers: use these"
_POD = "spec.template.spec"
_FIXED = {
    **_NAMES,
    "spec.podFailurePolicy": _BY_CODE,
    "spec.podReplacementPolicy": "which keeps a run from two writers: leave it out",
    f"{_POD}.restartPolicy": _BY_CODE,
    f"{_POD}.subdomain": _MACHINES,
    **{f"spec.{field}": _MACHINES for field in ("completions", "parallelism", "completionMode", "successPolicy")},
    f"{_POD}.containers.job.image": "which is --image: use it",
    f"{_POD}.containers.job.name": "the container that runs the command: patch it, or add another one",
    **{f"{_POD}.containers.job.{field}": "which is the command: give it after --" for field in ("args", "command")},
}
"""What --patch may not change of the Job, by path, with the reason."""

_DELETION_S = 110  # less than kubectl may take here

_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_GPU = "nvidia.com/gpu"
_APP = "app.kubernetes.io/name"
_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
_GRACE = "INAT_GRACE_SECONDS"
_QUEUE = "kueue.x-k8s.io/queue-name"
# Label and value of Spot nodes (Karpenter, EKS, Google, Azure), and whether these nodes are also tainted with it.
_SPOT = (
    ("karpenter.sh/capacity-type", "spot", False),
    ("eks.amazonaws.com/capacityType", "SPOT", False),
    ("cloud.google.com/gke-spot", "true", True),
    ("kubernetes.azure.com/scalesetpriority", "spot", True),
)


def build(request: SubmitOptions, command: Command) -> list[Manifest]:
    """The Job or JobSet, the ServiceAccount if a role is given and, for several machines, the Service between them.

    Raises UsageError.
    """
    refuse_unused(request, "k8s")
    _check(request)
    job = read_manifest("base/job.yaml")
    if request.nodes > 1:
        job = merge(job, read_manifest("nodes/job.yaml"))
    if request.jobset:
        job = merge(job, jobset.job_in(read_manifest(_JOBSET)))
    if command.sweep:
        job = merge(job, read_manifest("sweep/job.yaml"))
    job = merge(job, {"metadata": _metadata(request), "spec": _spec(request, command)})
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    if lasting_output(request, command) is None:  # the command itself has an --output, or needs none
        container["env"] = [each for each in container["env"] if each["name"] != "INAT_OUTPUT"]
    if request.wandb_secret:  # a key in the Secret wandb would win
        container["env"] = [each for each in container["env"] if each["name"] != "WANDB_API_KEY"]
    _set_account(pod, request)
    _set_nodes(pod, request)
    if request.spot:
        _set_spot(job["spec"]["template"], container)
    _set_resources(pod, request)
    manifests = [*_account(request), *_service(request), job]
    for each in manifests if request.namespace else ():
        each["metadata"]["namespace"] = request.namespace
    manifests = _patched(manifests, request)
    digest = hashlib.sha256(as_text(manifests).encode()).hexdigest()
    return [*manifests[:-1], merge(manifests[-1], {"metadata": {"annotations": {REQUEST: digest}}})]


def _patched(manifests: list[Manifest], request: SubmitOptions) -> list[Manifest]:
    """The manifests with each document of --patch merged into the one of its kind, the Job if it names none.

    With --jobset the Job is wrapped afterwards. Raises UsageError. Fields that Kubernetes does not know are refused by
    the API server, which kubectl asks to be strict.
    """
    patches: dict[str, list[Manifest]] = {each["kind"]: [] for each in manifests}
    for patch in read_patch(request.patch):
        kind = patch.get("kind", "Job")
        if not isinstance(kind, str) or kind not in patches:
            raise UsageError(f"--patch has the kind {kind!r}, and only {', '.join(patches)} can be patched.")
        if unknown := sorted({*patch} - {"apiVersion", *_TOP_FIELDS[kind]}):
            raise UsageError(f"--patch has {unknown[0]!r} at its top: it must have {', '.join(_TOP_FIELDS[kind])}.")
        patches[kind].append(patch)
    fixed = {**_FIXED, **(jobset.FIXED if request.jobset else {})}
    made = [patched(each, patches[each["kind"]], fixed if each["kind"] == "Job" else _NAMES) for each in manifests]
    job = _with_grace(_checked(made[-1]), _grace(manifests[-1]))
    return [*made[:-1], jobset.wrapped(job, read_manifest(_JOBSET), request.retries) if request.jobset else job]


def _checked(job: Manifest) -> Manifest:
    """The Job, if its pod has all volumes that are mounted. Raises UsageError."""
    pod = job["spec"]["template"]["spec"]
    volumes = {str(each.get("name")) for each in _items(pod, "volumes")}
    for container in (*_items(pod, "containers"), *_items(pod, "initContainers")):
        if lost := {str(each.get("name")) for each in _items(container, "volumeMounts")} - volumes:
            raise UsageError(f"--patch leaves a mount of {min(lost)} without its volume: patch both.")
    return job


def _items(tree: Manifest, field: str) -> list[Manifest]:
    """The objects in a list, as far as it is one."""
    value = tree.get(field)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _grace(job: Manifest) -> Any:
    return job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S)


def _with_grace(job: Manifest, before: Any) -> Manifest:
    """The Job that tells its container a patched grace period, because the container cannot read the field."""
    if _grace(job) == before:
        return job
    container = {"name": "job", "env": [{"name": _GRACE, "value": str(_grace(job))}]}
    return merge(job, {"spec": {"template": {"spec": {"containers": [container]}}}})  # type: ignore[no-any-return]


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what kubectl would read as a number or a boolean, and PyYAML would not: 1e-3, 0o17, y."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\.?[0-9][\w.+-]*$"), list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("[yYnN]$"), list("yYnN"))


def as_text(documents: list[Manifest]) -> str:
    """YAML that `kubectl create -f` takes."""
    return str(yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def submit(request: SubmitOptions, documents: list[Manifest]) -> KubernetesJob:
    """Apply what may exist already, and create the Job unless it works or is complete already. Raises JobError."""
    kubectl = Kubectl(request.namespace)
    *others, job = documents
    if others:
        kubectl.run("apply", "-f", "-", stdin=as_text(others))
    try:
        kubectl.run("create", "-f", "-", stdin=as_text([job]))
    except AlreadyExistsError:
        _follow_or_replace(kubectl, job)
    return KubernetesJob(str(request.name), kubectl, str(job["kind"]))


def _follow_or_replace(kubectl: Kubectl, job: Manifest) -> None:
    """Leave a Job or JobSet of this name that works, or is complete, to itself, and replace one that has failed.

    Raises ConflictError if the one that works was submitted in another way, or is not ours.
    """
    name, wanted = job["metadata"]["name"], job["metadata"]["annotations"][REQUEST]
    kind, resource = job["kind"], job["kind"].lower()
    try:
        found = kubectl.get(resource, name)
    except NotFoundError:  # deleted since
        kubectl.run("create", "-f", "-", stdin=as_text([job]))
        return
    metadata, phase = found.get("metadata", {}), job_watch.phase_of(found, [])
    phase = "Terminating" if metadata.get("deletionTimestamp") else phase
    is_same = metadata.get("annotations", {}).get(REQUEST) == wanted
    if metadata.get("labels", {}).get(_APP) != job["metadata"].get("labels", {}).get(_APP):
        raise ConflictError(f"The {kind} {name} already exists and is another program's: use --name.")
    if phase == "Complete" and is_same:
        events.warn(
            f"The {kind} {name} is already complete, and none is created: `kubectl delete {resource} {name}` first."
        )
    elif phase in ("Complete", "Failed", "Terminating"):
        events.warn(f"The {kind} {name} ({phase}) is replaced by a new one.")
        # In the foreground, so that no pod of it is left that could still write.
        kubectl.run("delete", resource, name, "--cascade=foreground", "--ignore-not-found", f"--timeout={_DELETION_S}s")
        kubectl.run("create", "-f", "-", stdin=as_text([job]))
    elif is_same:
        events.warn(f"The {kind} {name} already works on this run, and none is created.")
    else:
        raise ConflictError(
            f"The {kind} {name} already works, and was submitted with other options: wait for it, `kubectl delete "
            f"{resource} {name}`, or use --name."
        )


def read_manifest(name: str, folder: Path = FOLDER) -> Manifest:
    """The only manifest in a file. Raises ConflictError if it cannot be read."""
    path = folder / name
    try:
        [manifest] = read_documents(path)
    except (OSError, ValueError) as error:
        raise ConflictError(f"The manifest {path} cannot be read ({error}): restore it from the release.") from None
    return manifest


def _check(request: SubmitOptions) -> None:
    """Raise UsageError for what Kubernetes would refuse or could not do."""
    check_patterns(request, _PATTERNS)
    check_maxima(request, _MAXIMA, "Kubernetes")
    if request.region and "AWS_REGION" in request.variables:
        raise UsageError("--region and AWS_REGION in --env are both given, and are the same: leave one out.")
    if request.queue and _QUEUE in request.labels:
        raise UsageError(f"--queue and {_QUEUE} in --tags are both given, and are the same: leave one out.")
    for claim, path in request.claims:
        if not re.fullmatch(_OBJECT, claim) or not re.fullmatch(r"(/[^/:]+)+", path) or path in _OWN_MOUNTS:
            raise UsageError(f"--pvc is {claim}:{path}: write it as NAME:/PATH, with a path that the job does not use.")
    if len({path for _, path in request.claims}) < len(request.claims):
        raise UsageError("--pvc has a path twice: give each claim its own.")
    if request.role and request.service_account:
        raise UsageError("--role and --service-account are both given: an account has its own role, so leave one out.")
    for key, value in request.labels.items():
        if not (re.fullmatch(_LABEL_KEY, key) and re.fullmatch(_LABEL, value)):
            raise UsageError(f"--tags has {key}={value}, which is no valid label: use letters, digits, - _ . in both.")
    if request.jobset:
        jobset.check(request)
    if request.memory is not None and request.memory < 4:
        raise UsageError(f"--memory is {request.memory}, of which /dev/shm takes up to 2: set at least 4.")


def _metadata(request: SubmitOptions) -> Manifest:
    queue = {_QUEUE: request.queue} if request.queue else {}
    return {"name": request.name, "labels": {**request.labels, **queue}}


def _spec(request: SubmitOptions, command: Command) -> Manifest:
    """The requested changes to the Job's spec, as a patch."""
    volumes = [{"name": volume, "persistentVolumeClaim": {"claimName": claim}} for volume, claim, _ in _claims(request)]
    pod: Manifest = {"containers": [_container(request, command)], "volumes": volumes}
    spec: Manifest = {"template": {"metadata": {"labels": request.labels}, "spec": pod}}
    if request.retries is not None and not request.jobset:
        spec["backoffLimitPerIndex" if command.sweep or request.nodes > 1 else "backoffLimit"] = request.retries
    if request.timeout is not None:
        spec["activeDeadlineSeconds"] = int(request.timeout)
    if request.nodes > 1:
        spec |= {"completions": request.nodes, "parallelism": request.nodes}
        pod["subdomain"] = None if request.jobset else request.name
    if command.sweep:
        spec |= {"completions": request.workers, "parallelism": request.workers}
    return spec


def _container(request: SubmitOptions, command: Command) -> Manifest:
    """The requested changes to the container, as a patch."""
    possible = {
        "INAT_OUTPUT": lasting_output(request, command),
        "INAT_NUM_NODES": str(request.nodes) if request.nodes > 1 else None,
        "AWS_REGION": request.region,
        **{name: _literal(value) for name, value in request.variables.items()},
    }
    variables = {name: value for name, value in possible.items() if value is not None}
    container: Manifest = {
        "name": "job",
        "image": request.image,
        "args": [_literal(word) for word in command.words],
        "env": [{"name": name, "value": value, "valueFrom": None} for name, value in variables.items()],
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, _, path in _claims(request)],
    }
    if request.env_from_secret:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in request.env_from_secret]
    return container


def _literal(text: str) -> str:
    """Text that stays as it is: Kubernetes replaces $(NAME), even by secrets."""
    return text.replace("$", "$$")


def _claims(request: SubmitOptions) -> list[tuple[str, str, str]]:
    """A volume's name, the claim and the path of each --pvc."""
    return [(f"claim-{number}", claim, path) for number, (claim, path) in enumerate(request.claims)]


def _service(request: SubmitOptions) -> list[Manifest]:
    if request.nodes == 1 or request.jobset:  # which makes its own
        return []
    service = read_manifest("nodes/service.yaml")
    service["metadata"]["name"] = request.name
    service["spec"]["selector"] = {"batch.kubernetes.io/job-name": request.name}
    return [service]


def _account(request: SubmitOptions) -> list[Manifest]:
    """Our own ServiceAccount, where it has a role to give; another one is the cluster's, and stays as it is."""
    if not request.role:
        return []
    account = read_manifest("base/service-account.yaml")
    account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] = request.role
    return [account]


def _set_account(pod: Manifest, request: SubmitOptions) -> None:
    if request.service_account:
        pod["serviceAccountName"] = request.service_account
    elif not request.role:
        del pod["serviceAccountName"]  # the namespace's default
    if request.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": name} for name in request.image_pull_secret]


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


def _set_spot(template: Manifest, container: Manifest) -> None:
    """Let Karpenter evict the pod before its machine is taken away, and leave the grace to what the cloud gives."""
    del template["metadata"]["annotations"][_DO_NOT_DISRUPT]
    container["env"] = [each for each in container["env"] if each["name"] != _GRACE]
    container["env"].append({"name": SPOT_VARIABLE, "value": "true"})


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
