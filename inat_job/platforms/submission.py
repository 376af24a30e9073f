"""What every submission shares: what is asked for, the command that the job shall run, and how its end is told.

A target is a module `submit_<name>` of this room; see Target for what it must have.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from inat_job import options
from inat_job.configuration import Configuration
from inat_job.errors import JobError, TransientError, UsageError
from inat_job.options import option, public_uri, unsigned_uri
from inat_job.telemetry import redact

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
"""What Kubernetes (whose Indexed Jobs append a number), Batch and SageMaker all take for a job's name."""

_NAME_LENGTH, _DIGEST_LENGTH = 52, 12
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY")
_ACCESS_KEY = re.compile(r"(?<![A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])")
_KINDS: list[type[JobError]] = [JobError, *JobError.__subclasses__()]
_TABLE = {0} | {each.exit_code for each in _KINDS}
_KILLED = 137

TARGETS = ("k8s", "batch", "sagemaker")
"""Where a job can be submitted to."""


@dataclass(frozen=True)
class SubmitOptions:
    """How a job is submitted; None where the target has its own default, or where nothing is needed."""

    image: str | None = option(None, "Image to run, by tag or digest")
    name: str | None = option(None, "The job's name, and so the run's; else made of what decides the result")
    role: str | None = option(None, "ARN of the IAM role that the job works as")
    execution_role: str | None = option(None, "ARN of the role that AWS Batch pulls the image and reads secrets as")
    wandb_secret: str | None = option(None, "ARN of the secret that holds the wandb key, for AWS Batch")
    namespace: str | None = option(None, "Namespace in Kubernetes")
    queue: str | None = option(None, "Queue in AWS Batch; in Kubernetes that of Kueue")
    region: str | None = option(None, "AWS region; else that of the usual AWS variables")
    instance_type: str | None = option(None, "Kind of machine, such as g5.xlarge or ml.g5.xlarge")
    gpus: int = option(1, "GPUs of each machine", minimum=0, maximum=16)
    nodes: int = option(1, "Machines that work on the run", minimum=1, maximum=1024)
    cpus: int | None = option(None, "Processors of each machine", minimum=1)
    memory: int | None = option(None, "Memory of each machine in GiB", minimum=1)
    disk: int | None = option(None, "Scratch space of each machine in GiB", minimum=1)
    spot: bool = option(False, "Take spare machines, which are cheaper and may be taken away")
    retries: int | None = option(None, "Times that a job which was taken away or had trouble is run again", minimum=0)
    timeout: float | None = option(None, "End the job after this long, whatever it does", duration=True, minimum=60.0)
    tags: tuple[str, ...] = option((), "Labels of the job, as team=vision,project=inat")
    dry_run: bool = option(False, "Print what would be sent, and stop")
    wait: bool = option(False, "Wait for the end, show state and log, and end as the job does")

    def __post_init__(self) -> None:
        options.check(self)
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(
                f"--name is {self.name!r}: use 1 to {_NAME_LENGTH} of a-z, 0-9 and -, with no - at its ends."
            )
        for tag in self.tags:
            if not re.fullmatch(r"[^=\s]+=\S*", tag):
                raise UsageError(f"--tags has {tag!r}: write each as key=value.")
        if self.dry_run and self.wait:
            raise UsageError("--dry-run submits nothing, so there is nothing to --wait for: leave one out.")

    @property
    def labels(self) -> dict[str, str]:
        """The tags as a mapping."""
        return dict(tag.split("=", 1) for tag in self.tags)


@dataclass(frozen=True)
class Command:
    """The command line that the job shall run, known to be good: `words`, and the settings that they mean."""

    words: tuple[str, ...]
    configuration: Configuration

    @property
    def verb(self) -> str:
        """The first word: parta, prepare, ..."""
        return self.words[0]

    @property
    def name(self) -> str:
        """A job's name that the same command always gets, and that is the run's id where the run has one."""
        digest = hashlib.sha256("\0".join(self.words).encode()).hexdigest()[:_DIGEST_LENGTH]
        made = self.configuration.settings.run_id if self.verb in ("parta", "partb") else f"{self.verb}-{digest}"
        plain = re.sub(r"[^a-z0-9-]", "-", made.lower())[:_NAME_LENGTH].strip("-")
        return plain or f"{self.verb}-{digest}"

    @property
    def stores(self) -> bool:
        """Whether it leaves a run folder, for which it needs an output that outlives the machine."""
        return self.verb not in ("prepare", "bench", "preflight")

    @property
    def output(self) -> str | None:
        """What --output was set to, None where it was not."""
        given = "run.output" in self.configuration.given
        return self.configuration.settings.run.output if given else None


@dataclass(frozen=True)
class State:
    """Where a job stands: the platform's word for it, log lines that are new, and once it has ended our exit code."""

    phase: str
    lines: tuple[str, ...] = ()
    code: int | None = None
    reason: str = ""


class Handle(Protocol):
    """A job that was submitted."""

    @property
    def name(self) -> str:
        """What the platform calls it, for people."""

    def look(self) -> State:
        """Where it stands now. Raises JobError, TransientError where a later look may succeed."""


class Target(Protocol):
    """What a module `submit_<name>` must have."""

    NEEDS: tuple[str, ...]
    """Fields of the request without which nothing can be submitted."""

    def build(self, request: SubmitOptions, command: Command) -> list[dict[str, Any]]:
        """All that is sent, complete, from a request that `completed` gave; it asks nobody. Raises UsageError."""

    def shown(self, documents: list[dict[str, Any]]) -> str:
        """The documents as a person or another tool takes them."""

    def submit(self, request: SubmitOptions, documents: list[dict[str, Any]]) -> Handle:
        """Send them. Raises JobError."""


class JobEnded(JobError):
    """A job that was waited for failed; the exit code is its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def completed(request: SubmitOptions, command: Command, needs: Sequence[str]) -> SubmitOptions:
    """The request with a name, and with placeholders such as <IMAGE> for what it lacks, in a dry run alone.

    Raises UsageError with the flags that are missing. A placeholder that was copied counts as missing too.
    """
    known = options.options_of(SubmitOptions)
    missing = [field for field in needs if _lacks(getattr(request, field))]
    if missing and not request.dry_run:
        flags = ", ".join(known[field][0].flag for field in missing)
        raise UsageError(f"{flags} must be given to submit this; --dry-run shows the rest without.")
    filled: dict[str, Any] = {field: placeholder(known[field][0].name) for field in missing}
    return dataclasses.replace(request, name=request.name or command.name, **filled)


def refuse_unused(request: SubmitOptions, why: Mapping[str, str]) -> None:
    """Raise UsageError for the first field that was set though the target has no use for it, by `why`."""
    for field, (each, _) in options.options_of(SubmitOptions).items():
        value = getattr(request, field)
        if field in why and value not in (None, False):
            shown = "given" if value is True else repr(value)
            raise UsageError(f"{each.flag} is {shown}, and is not used here ({why[field]}): leave it out.")


def placeholder(name: str) -> str:
    """What a dry run shows in the place of an option's value."""
    return f"<{name.upper().replace('-', '_')}>"


def _lacks(value: str | None) -> bool:
    return value is None or value.startswith("<")


def lasting_output(request: SubmitOptions, command: Command) -> str | None:
    """Where the job must be told to put the run, None where it is told already or leaves none.

    Raises UsageError for an output that would be lost with the machine; a dry run shows a placeholder where none is.
    """
    if not command.stores or (command.output or "").startswith("s3://"):
        return None
    if command.output is None and request.dry_run:
        return f"s3://{placeholder('bucket')}/runs"
    shown = "not set" if command.output is None else repr(command.output)
    raise UsageError(f"--output is {shown}, and the job's disk goes with it: use s3://bucket/prefix in the command.")


def refuse_secrets(command: Command, environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError for a command with a password, key or signature in it: whoever may list jobs could read it."""
    secrets = {name: value for name in _SECRETS if len(value := environment.get(name, "")) >= redact.MIN_SECRET_LENGTH}
    for word in command.words:
        uri = re.search(r"[A-Za-z][A-Za-z0-9+.-]*://.*", word)
        if uri and unsigned_uri(uri[0]) != uri[0]:
            raise UsageError(
                f"The command holds a password or signature for {public_uri(uri[0])}, which all could read: let the "
                "job's role read it."
            )
        if _ACCESS_KEY.search(word):
            raise UsageError("The command holds an AWS access key, which all could read: let the job have a role.")
        if told := next((name for name, secret in secrets.items() if secret in word), None):
            raise UsageError(f"The command holds what {told} is here, which all could read: use a secret.")


def pages(
    call: Callable[..., dict[str, Any]], operation: str, token: str, **parameters: Any
) -> Iterator[dict[str, Any]]:
    """The answers of an operation of AWS that lists, until none says that there is more; `token` is its word for it."""
    more: dict[str, str] = {}
    while True:
        page = call(operation, **parameters, **more)
        yield page
        if not page.get(token):
            return
        more = {token: page[token]}


def our_code(code: int) -> int:
    """Our exit code for a container's: 137 is transient (killed, by memory or grace), an unknown one is a bug."""
    if code == _KILLED:
        return TransientError.exit_code
    return code if code in _TABLE else JobError.exit_code
