"""The state of a Kubernetes Job by its conditions, its pods and their logs; all but the queries are pure functions."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from inat_job.errors import ConflictError, NoPermissionError, TransientError
from inat_job.platforms.k8s.kubectl import Kubectl, NotFoundError
from inat_job.platforms.submission import State, our_code
from inat_job.storage.disk import parse_json

FIRST_LINES = 20
"""Log lines shown of a pod that already runs when it is first seen."""

FINAL_CODES = (2, 65, 77, 78)
"""Exit codes that fail the Job, or an index of a sweep, at once by its podFailurePolicy."""

_LABELS = {"Job": "batch.kubernetes.io/job-name", "JobSet": "jobset.sigs.k8s.io/jobset-name"}
"""The label of a pod that names its Job or JobSet, by kind."""

_INDEX = "batch.kubernetes.io/job-completion-index"
STUCK_S = 300.0
"""Seconds for which a container image may be missing: a registry may be down, or the image still on its way there."""

_STUCK = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
_FULL_VOLUME = re.compile("exceeds the .*limit|ephemeral", re.IGNORECASE)
"""What an eviction says where the pod itself has used too much disk, and not its machine too much of something."""

_FIXES = (
    ("^(ErrImage|ImagePull|InvalidImage)", "check --image, and --image-pull-secret for a private registry"),
    ("^CreateContainerConfigError", "create what it names in the namespace"),
    ("Insufficient nvidia.com/gpu", "check --gpus, and whether the cluster has its GPU device plugin"),
    ("Insufficient (cpu|memory)", "lower --cpus or --memory"),
    ("Insufficient ephemeral-storage", "lower --disk, or give the nodes larger disks"),
    ("taint", "tolerate the taint by --patch"),
    ("node affinity|node selector", "check --instance-type and --spot"),
    ("persistentvolumeclaim|PersistentVolume", "check --pvc"),
)
"""Patterns of why a pod does not start, and the fix."""

_NORMAL_WAITING = ("PodInitializing", "ContainerCreating")

_BY_CODE = ("PodFailurePolicy", "FailJobSetFailurePolicyAction")
"""Why a Job, or a JobSet, has failed at once, for a final code."""

_OUT_OF_MEMORY = "OOMKilled"
_OOM_END = (
    ConflictError.exit_code,
    "OOMKilled, the container used more memory than its limit: raise --memory, or train with a smaller --batch-size",
)

Resource = Mapping[str, Any]
"""A Job or a pod, as the API server returns it."""


class KubernetesJob:
    """A submitted Job or JobSet. Each look returns the log lines since the last one."""

    def __init__(self, name: str, kubectl: Kubectl, kind: str) -> None:
        self.name = name
        self._kubectl, self._kind = kubectl, kind
        self._pod, self._since = "", ""
        self._stuck_at: float | None = None

    def read_state(self) -> State:
        """The Job's state now. Raises JobError as kubectl does."""
        try:
            job = self._kubectl.get(self._kind.lower(), self.name)
        except NotFoundError:
            why = f"the {self._kind} was deleted; submit it again"
            return State("Deleted", code=TransientError.exit_code, reason=why)
        pods = self._kubectl.get("pods", "-l", f"{_LABELS[self._kind]}={self.name}").get("items", [])
        code, reason = exit_code_of(job, pods)
        problem = start_problem(pods) or last_loss(pods)
        if code is None and self._is_stuck(problem):
            code, problem = ConflictError.exit_code, f"{problem}; the {self._kind} still waits: fix it, or delete it"
        return State(phase_of(job, pods), tuple(self._new_lines(pods)), code, reason or problem)

    def _is_stuck(self, problem: str) -> bool:
        """Whether the newest pod has not started for long, for a reason that does not pass by itself."""
        if not problem.startswith(_STUCK):
            self._stuck_at = None
            return False
        self._stuck_at = self._stuck_at or time.monotonic()
        return time.monotonic() - self._stuck_at >= STUCK_S

    def _new_lines(self, pods: Sequence[Resource]) -> list[str]:
        """Log lines since the last look, of the newest pod with rank 0 that has started."""
        pod = next((pod for pod in leader_pods(pods) if _has_started(pod)), None)
        if pod is None:
            return []
        name = str(pod["metadata"]["name"])
        start = [f"--since-time={self._since}"] if name == self._pod and self._since else [f"--tail={FIRST_LINES}"]
        if name != self._pod:
            self._pod, self._since = name, ""
        try:
            text = self._kubectl.run("logs", name, "-c", "job", "--timestamps", *start)
        except (ConflictError, TransientError, NoPermissionError):  # the state is known all the same
            return []
        stamped = [line.partition(" ") for line in text.splitlines()]
        new = [(time, line) for time, _, line in stamped if sort_key(time) > sort_key(self._since)]
        self._since = new[-1][0] if new else self._since
        return [line for _, line in new]


def phase_of(job: Resource, pods: Sequence[Resource]) -> str:
    """A word for the Job's state, Kubernetes' own if it has one."""
    if _is_complete(job):
        return "Complete"
    for kind in ("Failed", "Suspended"):
        if _condition(job, kind):
            return kind
    return "Running" if any(_phase(pod) == "Running" for pod in pods) else "Pending"


def start_problem(pods: Sequence[Resource]) -> str:
    """Why the newest pod does not start, and the fix; empty if nothing is known."""
    for pod in leader_pods(pods)[:1]:
        waiting = _container(pod).get("state", {}).get("waiting", {})
        if waiting.get("reason") and waiting["reason"] not in _NORMAL_WAITING:
            return _with_fixes(_why(waiting))
        unscheduled = _condition(pod, "PodScheduled", "False")
        if unscheduled:
            return _with_fixes(_why(unscheduled))
    return ""


def _why(state: Resource) -> str:
    """The reason and the message of a condition or of a waiting container."""
    return ": ".join(str(state[key]) for key in ("reason", "message") if state.get(key))


def _with_fixes(problem: str) -> str:
    fixes = [fix for pattern, fix in _FIXES if re.search(pattern, problem)]
    return f"{problem.rstrip('. ')}: {', or '.join(fixes)}" if fixes else problem


def last_loss(pods: Sequence[Resource]) -> str:
    """How the pod before the newest one ended, if for memory or by an eviction: the next one may end the same way."""
    for pod in leader_pods(pods)[1:2]:
        return _named_end(pod)[1]
    return ""


def exit_code_of(job: Resource, pods: Sequence[Resource]) -> tuple[int | None, str]:
    """Our exit code, None while the Job runs, and the reason of a failure.

    The code of a failed Job is that of the pod that failed it, by the exit code of its container. Without such a pod
    the Job may be submitted again.
    """
    if _is_complete(job):
        return 0, ""
    failed = _condition(job, "Failed")
    if not failed:
        return None, ""
    why = _why(failed)
    exits = [terminated for pod in pods if (terminated := _terminated(pod))]
    exits = sorted(exits, key=lambda each: sort_key(str(each.get("finishedAt", ""))))
    exits = [each for each in exits if each.get("exitCode")]
    evicted = [pod for pod in pods if _is_evicted(pod)]
    if evicted and failed.get("reason") != "DeadlineExceeded":
        return _named_end(evicted[-1])
    if failed.get("reason") in _BY_CODE:  # the pods of other machines end as a consequence
        exits = [each for each in exits if each["exitCode"] in FINAL_CODES] or exits
    if not exits or failed.get("reason") == "DeadlineExceeded":
        return TransientError.exit_code, why
    if exits[-1].get("reason") == _OUT_OF_MEMORY:
        return _OOM_END
    return our_code(int(exits[-1]["exitCode"])), _termination_reason(exits[-1]) or why


def _named_end(pod: Resource) -> tuple[int, str]:
    """Code and reason of a pod that was evicted or ran out of memory; 0 and nothing for another one."""
    if _is_evicted(pod):
        message = str(pod["status"].get("message", "")).rstrip(". ")
        if _FULL_VOLUME.search(message):
            return ConflictError.exit_code, f"Evicted, {message}: raise --disk, or give the pod a larger volume"
        return TransientError.exit_code, f"Evicted, {message}: submit it again"
    return _OOM_END if _terminated(pod).get("reason") == _OUT_OF_MEMORY else (0, "")


def _is_evicted(pod: Resource) -> bool:
    return bool(pod.get("status", {}).get("reason") == "Evicted")


def leader_pods(pods: Sequence[Resource]) -> list[Resource]:
    """The pods whose log is the run's, newest first: of several machines those with index 0, which is rank 0."""
    first = [pod for pod in pods if pod["metadata"].get("annotations", {}).get(_INDEX, "0") == "0"]
    return sorted(first, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)


def sort_key(time: str) -> tuple[str, str]:
    """Sorts RFC 3339 times in UTC, whose fractions of a second may lack trailing zeros."""
    seconds, _, fraction = time.removesuffix("Z").partition(".")
    return seconds, fraction.ljust(9, "0")


def _is_complete(job: Resource) -> bool:
    return bool(_condition(job, "Complete") or _condition(job, "Completed"))  # the latter is JobSet's word


def _condition(resource: Resource, kind: str, status: str = "True") -> Resource:
    conditions = resource.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind and each.get("status") == status), {})


def _phase(pod: Resource) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _container(pod: Resource) -> Resource:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((each for each in statuses if each.get("name") == "job"), {})


def _terminated(pod: Resource) -> Resource:
    found = _container(pod).get("state", {}).get("terminated") or {}
    return found if isinstance(found, Mapping) else {}


def _has_started(pod: Resource) -> bool:
    state = _container(pod).get("state", {})
    return bool(state.get("running") is not None or state.get("terminated"))


def _termination_reason(terminated: Resource) -> str:
    """The reason that the job wrote to its termination log."""
    try:
        return str(parse_json(terminated.get("message", ""))["reason"])
    except (ValueError, TypeError, KeyError):
        return ""
