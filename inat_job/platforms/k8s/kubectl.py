"""Runs kubectl, which has the credentials and speaks every version of the API, and translates its errors."""

import re
import shutil
import subprocess
from typing import Any

from inat_job.errors import ConflictError, JobError, NoPermissionError, TransientError
from inat_job.storage.disk import parse_json

_TIMEOUT_S = 60
_MESSAGE_LENGTH = 600  # characters of kubectl's output shown in a message
_KLOG = r"[EWIF]\d{4} \d\d:"  # kubectl's own log, which repeats the same several times
# Patterns of the API server's answers and of Go's network errors, as kubectl prints them. The first match counts.
_ERRORS: tuple[tuple[str, type[JobError], str], ...] = (
    (r"Forbidden|Unauthorized|must be logged in|provide credentials", NoPermissionError, "ask for this permission"),
    (r"strict decoding|unknown field|unmarshal", ConflictError, "correct it in --patch, or use a newer cluster"),
    (r"no matches for kind .?JobSet", ConflictError, "install JobSet in the cluster, or leave out --jobset"),
    (r"localhost:8080", ConflictError, "no cluster is configured here: set KUBECONFIG"),  # kubectl's default server
    (
        r"Unable to connect|connection refused|timed? ?out|deadline exceeded|TLS handshake|connection reset|EOF"
        r"|ServiceUnavailable|TooManyRequests|InternalError|etcdserver|no such host",
        TransientError,
        "try again",
    ),
)


class NotFoundError(ConflictError):
    """The resource does not exist in the cluster."""


class AlreadyExistsError(ConflictError):
    """The resource to be created already exists."""


class Kubectl:
    """kubectl for one namespace, or for its own current namespace."""

    def __init__(self, namespace: str | None) -> None:
        self._namespace = ["--namespace", namespace] if namespace else []

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl's output. Raises the JobError for the cluster's answer."""
        program = shutil.which("kubectl")
        if program is None:
            raise ConflictError(
                "kubectl is not on PATH: install it, or apply the output of --dry-run on another machine."
            )
        command = [program, *self._namespace, f"--request-timeout={_TIMEOUT_S}s", *arguments]
        try:
            done = subprocess.run(  # noqa: S603 (no shell, and kubectl checks the arguments)
                command,
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=2 * _TIMEOUT_S,
                check=False,
                start_new_session=True,  # Ctrl-C is for this process only
            )
        except subprocess.TimeoutExpired:
            raise TransientError(
                f"kubectl {arguments[0]} has not answered for {2 * _TIMEOUT_S} s: try again."
            ) from None
        if done.returncode:
            raise _translate(arguments[0], done.stderr)
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """A resource or a list of resources, from JSON. Raises as `run` does."""
        text = self.run("get", *arguments, "-o", "json")
        try:
            resource = parse_json(text)
        except ValueError:
            raise TransientError(f"kubectl get printed {text[:80]!r}, which is no JSON: try again.") from None
        return resource if isinstance(resource, dict) else {}


def _translate(verb: str, stderr: str) -> JobError:
    everything = " ".join(stderr.split())
    lines = [line for line in stderr.splitlines() if line.strip() and not re.match(_KLOG, line)]
    message = " ".join(" ".join(lines).split())[:_MESSAGE_LENGTH] or everything[:_MESSAGE_LENGTH] or "nothing"
    if "(AlreadyExists)" in everything:
        return AlreadyExistsError(f"kubectl {verb} says: {message}; submit it again.")
    if "(NotFound)" in everything:
        return NotFoundError(f"kubectl {verb} says: {message}; check --namespace and --name.")
    for pattern, kind, fix in _ERRORS:
        if re.search(pattern, everything):
            return kind(f"kubectl {verb} says: {message}; {fix}.")
    return ConflictError(f"kubectl {verb} says: {message}; change the option that it names.")
