"""kubectl as the way to a cluster: it has the credentials and speaks every version, so nothing else needs to."""

import json
import re
import shutil
import subprocess
from typing import Any

from inat_job.errors import ConflictError, JobError, NoPermissionError, TransientError

_SECONDS = 60
_WORDS = 600  # characters of its words that are shown
_KLOG = r"[EWIF]\d{4} \d\d:"  # its own log, which says the same several times
# What kubectl prints of the API server's answers and of Go's network errors; the first that fits.
_KINDS: tuple[tuple[str, type[JobError], str], ...] = (
    (
        r"Forbidden|Unauthorized|must be logged in|provide credentials",
        NoPermissionError,
        "ask for the right to do this",
    ),
    (r"localhost:8080", ConflictError, "no cluster is configured here: set KUBECONFIG"),  # kubectl's last resort
    (
        r"Unable to connect|connection refused|timed? ?out|deadline exceeded|TLS handshake|connection reset|EOF"
        r"|ServiceUnavailable|TooManyRequests|InternalError|etcdserver|no such host",
        TransientError,
        "try it again",
    ),
)


class NotFoundError(ConflictError):
    """What was asked for does not exist in the cluster."""


class AlreadyExistsError(ConflictError):
    """What should be made exists already."""


class Kubectl:
    """kubectl for one namespace, or for its own current one."""

    def __init__(self, namespace: str | None) -> None:
        self._namespace = ["--namespace", namespace] if namespace else []

    def run(self, *arguments: str, given: str | None = None) -> str:
        """What it prints. Raises JobError, as the cluster's answer is."""
        program = shutil.which("kubectl")
        if program is None:
            raise ConflictError("kubectl is not on PATH: install it, or give the output of --dry-run to one elsewhere.")
        command = [program, *self._namespace, f"--request-timeout={_SECONDS}s", *arguments]
        try:
            done = subprocess.run(  # noqa: S603 (no shell; the words are checked by kubectl)
                command,
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=2 * _SECONDS,
                check=False,
                start_new_session=True,  # Ctrl-C is for us alone
            )
        except subprocess.TimeoutExpired:
            raise TransientError(
                f"kubectl {arguments[0]} has not answered for {2 * _SECONDS} s: try it again."
            ) from None
        if done.returncode:
            raise _error(arguments[0], done.stderr)
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of some, as JSON. Raises as `run` does."""
        text = self.run("get", *arguments, "-o", "json")
        try:
            found = json.loads(text)
        except ValueError:
            raise TransientError(f"kubectl get printed no JSON but {text[:80]!r}: try it again.") from None
        return found if isinstance(found, dict) else {}


def _error(verb: str, stderr: str) -> JobError:
    everything = " ".join(stderr.split())
    lines = [line for line in stderr.splitlines() if line.strip() and not re.match(_KLOG, line)]
    said = " ".join(" ".join(lines).split())[:_WORDS] or everything[:_WORDS] or "nothing"
    if "(AlreadyExists)" in everything:
        return AlreadyExistsError(said)
    if "(NotFound)" in everything:
        return NotFoundError(f"kubectl {verb} says: {said}; check --namespace and --name.")
    for pattern, kind, mend in _KINDS:
        if re.search(pattern, everything):
            return kind(f"kubectl {verb} says: {said}; {mend}.")
    return ConflictError(f"kubectl {verb} says: {said}; change what it names.")
