"""Where a Job of Kubernetes stands: its conditions, its pods and their logs, told as a State by pure functions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inat_job.errors import ConflictError, NoPermissionError, TransientError
from inat_job.platforms.k8s.kubectl import Kubectl, NotFoundError
from inat_job.platforms.submission import State, our_code

FIRST_LINES = 20
"""LogTail lines that are shown of a pod that runs already when it is first looked at."""

_JOB_LABEL = "batch.kubernetes.io/job-name"
_INDEX = "batch.kubernetes.io/job-completion-index"
_WAITING = ("PodInitializing", "ContainerCreating")  # ordinary, and not worth a word

FINAL = (2, 65, 77, 78)
"""Codes on which podFailurePolicy gives the Job up."""

Thing = Mapping[str, Any]


class Watched:
    """A Job that was submitted; its look goes on in the log where the last one ended."""

    def __init__(self, name: str, kubectl: Kubectl) -> None:
        self.name = name
        self._kubectl = kubectl
        self._pod, self._since = "", ""

    def look(self) -> State:
        """Raises JobError, as kubectl's answers are."""
        try:
            job = self._kubectl.get("job", self.name)
        except NotFoundError:
            return State("Deleted", code=TransientError.exit_code, reason="somebody deleted the Job; submit it again")
        pods = self._kubectl.get("pods", "-l", f"{_JOB_LABEL}={self.name}").get("items", [])
        code, reason = end_of(job, pods)
        return State(phase_of(job, pods), tuple(self._fresh(pods)), code, reason or trouble_of(pods))

    def _fresh(self, pods: Sequence[Thing]) -> list[str]:
        """LogTail lines since the last look, of the newest pod that speaks for the job."""
        speaker = next((pod for pod in speakers(pods) if _began(pod)), None)
        if speaker is None:
            return []
        name = str(speaker["metadata"]["name"])
        where = [f"--since-time={self._since}"] if name == self._pod and self._since else [f"--tail={FIRST_LINES}"]
        if name != self._pod:
            self._pod, self._since = name, ""
        try:
            text = self._kubectl.run("logs", name, "-c", "job", "--timestamps", *where)
        except (ConflictError, TransientError, NoPermissionError):  # a log is not the state: the next look has it
            return []
        stamped = [line.partition(" ") for line in text.splitlines()]
        new = [(stamp, line) for stamp, _, line in stamped if order(stamp) > order(self._since)]
        self._since = new[-1][0] if new else self._since
        return [line for _, line in new]


def phase_of(job: Thing, pods: Sequence[Thing]) -> str:
    """A word for where the Job stands, Kubernetes' own where it has one."""
    for kind in ("Complete", "Failed", "Suspended"):
        if _condition(job, kind):
            return kind
    return "Running" if any(_phase(pod) == "Running" for pod in pods) else "Pending"


def trouble_of(pods: Sequence[Thing]) -> str:
    """Why the newest pod does not start, empty where nothing is known."""
    for pod in speakers(pods)[:1]:
        waiting = _container(pod).get("state", {}).get("waiting", {})
        if waiting.get("reason") and waiting["reason"] not in _WAITING:
            return ": ".join(str(waiting[key]) for key in ("reason", "message") if waiting.get(key))
        unscheduled = _condition(pod, "PodScheduled", "False")
        if unscheduled:
            return str(unscheduled.get("message", ""))
    return ""


def end_of(job: Thing, pods: Sequence[Thing]) -> tuple[int | None, str]:
    """Our exit code, None while it goes on, and a sentence on a failure.

    A failed Job's is that of the pod for which it was given up, as its container ended; without one, the Job can only
    be tried again.
    """
    if _condition(job, "Complete"):
        return 0, ""
    failed = _condition(job, "Failed")
    if not failed:
        return None, ""
    why = ": ".join(str(failed[key]) for key in ("reason", "message") if failed.get(key))
    ends = sorted((end for pod in pods if (end := _ended(pod))), key=lambda end: order(str(end.get("finishedAt", ""))))
    ends = [end for end in ends if end.get("exitCode")]
    if failed.get("reason") == "PodFailurePolicy":  # on several machines the others end too, of the first's end
        ends = [end for end in ends if end["exitCode"] in FINAL] or ends
    if not ends or failed.get("reason") == "DeadlineExceeded":
        return TransientError.exit_code, why
    return our_code(int(ends[-1]["exitCode"])), _last_words(ends[-1]) or why


def speakers(pods: Sequence[Thing]) -> list[Thing]:
    """The pods whose log is the run's, of several machines those of rank 0, the newest first."""
    first = [pod for pod in pods if pod["metadata"].get("annotations", {}).get(_INDEX, "0") == "0"]
    return sorted(first, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)


def order(stamp: str) -> tuple[str, str]:
    """What sorts times of RFC 3339 in UTC, whose fractions of a second may have lost their last zeros."""
    seconds, _, fraction = stamp.removesuffix("Z").partition(".")
    return seconds, fraction.ljust(9, "0")


def _condition(thing: Thing, kind: str, status: str = "True") -> Thing:
    conditions = thing.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind and each.get("status") == status), {})


def _phase(pod: Thing) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _container(pod: Thing) -> Thing:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((each for each in statuses if each.get("name") == "job"), {})


def _ended(pod: Thing) -> Thing:
    found = _container(pod).get("state", {}).get("terminated") or {}
    return found if isinstance(found, Mapping) else {}


def _began(pod: Thing) -> bool:
    state = _container(pod).get("state", {})
    return bool(state.get("running") is not None or state.get("terminated"))


def _last_words(end: Thing) -> str:
    """The sentence that the job left in its termination log."""
    try:
        return str(json.loads(end.get("message", ""))["reason"])
    except (ValueError, TypeError, KeyError):
        return ""
