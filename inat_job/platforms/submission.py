"""What all targets of `submit` share: the options, the command that the job runs, and the state of the job.

A target is a module `submit_<name>` in the folder of its platform; see Target for what it must have.
"""

import dataclasses
import hashlib
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from inat_job import options
from inat_job.address import in_bucket
from inat_job.command_options import SweepOptions
from inat_job.configuration import Configuration, options_by_key
from inat_job.errors import JobError, TransientError, UsageError
from inat_job.options import SettingsSection, option
from inat_job.platforms import submit_values
from inat_job.settings import FOLDERS

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
"""What Kubernetes (whose Indexed Jobs append a number), Batch and SageMaker all accept as a job's name."""

_NAME_LENGTH, _DIGEST_LENGTH = 52, 12

_EXIT_CODES = {0, JobError.exit_code, *(each.exit_code for each in JobError.__subclasses__())}
_KILLED = 137

TARGETS = ("k8s", "batch", "sagemaker")
"""Where a job can be submitted to."""

_OF_KUBERNETES = "only Kubernetes has namespaces"
_NO_PODS = dict.fromkeys(("batch", "sagemaker"), "only Kubernetes has pods")
_OF_THE_MACHINE = "--instance-type decides it"


@dataclass(frozen=True)
class SubmitOptions(SettingsSection):
    """How a job is submitted; None is the target's own default, or that nothing is needed.

    `refused` names the targets that have no use for an option, and why.
    """

    image: str | None = option(None, "Container image to run, by tag or digest", metavar="NAME")
    name: str | None = option(
        None,
        "Name of the job, and of its run",
        metavar="NAME",
        shown_default="made from the settings that decide the result",
    )
    role: str | None = option(None, "IAM role of the job", metavar="ARN")
    execution_role: str | None = option(
        None,
        "Role with which AWS Batch pulls the image",
        metavar="ARN",
        refused={"k8s": "the cluster pulls the image", "sagemaker": "the job pulls its image with --role"},
    )
    wandb_secret: str | None = option(
        None,
        "Secret that holds the wandb key, read with --role or the ServiceAccount: an ARN, or projects/P/secrets/S",
        metavar="NAME",
    )
    service_account: str | None = option(
        None, "ServiceAccount of the pod, which exists already", metavar="NAME", refused=_NO_PODS
    )
    image_pull_secret: tuple[str, ...] = option(
        (), "Secret with which the image is pulled; may be repeated", metavar="NAME", repeated=True, refused=_NO_PODS
    )
    env: tuple[str, ...] = option((), "Variable of the job; may be repeated", metavar="NAME=VALUE", repeated=True)
    env_from_secret: tuple[str, ...] = option(
        (), "Secret whose keys become variables; may be repeated", metavar="NAME", repeated=True, refused=_NO_PODS
    )
    pvc: tuple[str, ...] = option(
        (), "PersistentVolumeClaim to mount; may be repeated", metavar="NAME:PATH", repeated=True, refused=_NO_PODS
    )
    patch: str | None = option(
        None, "YAML file that is merged into what --dry-run prints, lists of named items by name", metavar="PATH"
    )
    namespace: str | None = option(
        None,
        "Namespace of the job",
        metavar="NAME",
        shown_default="kubectl's current one",
        refused={"batch": _OF_KUBERNETES, "sagemaker": _OF_KUBERNETES},
    )
    queue: str | None = option(
        None,
        "Queue in AWS Batch, or of Kueue in Kubernetes",
        metavar="NAME",
        refused={"sagemaker": "SageMaker has no queues"},
    )
    region: str | None = option(None, "AWS region", metavar="NAME", shown_default="as the AWS variables say")
    instance_type: str | None = option(
        None, "Type of machine, such as g5.xlarge or ml.g5.xlarge; in AWS Batch with --nodes only", metavar="NAME"
    )
    gpus: int = option(1, "GPUs of each machine", minimum=0, maximum=16, refused={"sagemaker": _OF_THE_MACHINE})
    nodes: int = option(1, "Machines that work on the run", minimum=1, maximum=1024)
    jobset: bool = option(
        False,
        "Submit a JobSet, by which all machines start again together, as one retry",
        refused=dict.fromkeys(("batch", "sagemaker"), "it starts all machines again together anyway"),
    )
    workers: int = option(1, "Workers of a sweep, each on a machine of its own", minimum=1, maximum=1024)
    cpus: int | None = option(None, "Processors of each machine", minimum=1, refused={"sagemaker": _OF_THE_MACHINE})
    memory: int | None = option(
        None, "Memory of each machine in GiB", minimum=1, refused={"sagemaker": _OF_THE_MACHINE}
    )
    disk: int | None = option(
        None,
        "Scratch space of each machine in GiB",
        minimum=1,
        refused={"batch": "the launch template of the compute environment decides it"},
    )
    spot: bool = option(
        False,
        "Use spare machines, which are cheaper and may be taken away",
        refused={"batch": "the compute environment of the queue decides it"},
    )
    retries: int | None = option(
        None, "How many times a job is run again after a preemption or a temporary failure", minimum=0
    )
    timeout: float | None = option(
        None,
        "End the job after this long, such as 6h, whatever it is doing; a number alone is in seconds",
        duration=True,
        minimum=60.0,
    )
    tags: tuple[str, ...] = option((), "Labels of the job, such as team=vision,project=inat")
    dry_run: bool = option(False, "Print the request, with placeholders for missing options, and stop")
    wait: bool = option(False, "Wait for the end, show state and log, and end with the job's exit code")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(
                f"--name is {self.name!r}: use 1 to {_NAME_LENGTH} of a-z, 0-9 and -, with no - at its ends."
            )
        submit_values.check_values(self)
        if self.dry_run and self.wait:
            raise UsageError("--dry-run submits nothing, so there is nothing to --wait for: leave one out.")

    @property
    def labels(self) -> dict[str, str]:
        """The tags as a mapping."""
        return dict(tag.split("=", 1) for tag in self.tags)

    @property
    def variables(self) -> dict[str, str]:
        """The variables of --env as a mapping."""
        return dict(each.split("=", 1) for each in self.env)

    @property
    def claims(self) -> list[tuple[str, str]]:
        """The name and the path of each --pvc."""
        return [(name, path) for name, _, path in (each.partition(":") for each in self.pvc)]


@dataclass(frozen=True)
class Command:
    """The command line that the job runs, checked: `words`, the settings that they mean, and its run's id.

    `sweep` is how a sweep searches, None for another command. `reads` and `writes` have the paths and URIs, each after
    its flag, that the command names beside its settings.
    """

    words: tuple[str, ...]
    configuration: Configuration
    run_id: str | None = None
    sweep: SweepOptions | None = None
    reads: tuple[tuple[str, str], ...] = ()
    writes: tuple[tuple[str, str], ...] = ()

    @property
    def verb(self) -> str:
        """The first word: parta, prepare, ..."""
        return self.words[0]

    @property
    def name(self) -> str:
        """The job's name, the same for the same command: its run's id, where it has a run."""
        digest = hashlib.sha256("\0".join(self.words).encode()).hexdigest()[:_DIGEST_LENGTH]
        plain = re.sub(r"[^a-z0-9-]", "-", (self.run_id or f"{self.verb}-{digest}").lower())[:_NAME_LENGTH].strip("-")
        return plain or f"{self.verb}-{digest}"

    @property
    def writes_run(self) -> bool:
        """Whether it writes a run folder, and so needs an output that outlives the machine."""
        return self.verb not in ("prepare", "predict", "bench", "preflight")

    @property
    def output(self) -> str | None:
        """The value of --output, None if it was not given."""
        given = "run.output" in self.configuration.given
        return self.configuration.settings.run.output if given else None


@dataclass(frozen=True)
class State:
    """The state of a job: the platform's word for it, new log lines, and our exit code once it has ended."""

    phase: str
    lines: tuple[str, ...] = ()
    code: int | None = None
    reason: str = ""


class Handle(Protocol):
    """A job that was submitted; `name` is its name on the platform, for people."""

    name: str

    def read_state(self) -> State:
        """Its state now. Raises JobError, TransientError if a later look may succeed."""


class Target(Protocol):
    """What a module `submit_<name>` must have."""

    NEEDS: tuple[str, ...]
    """The fields of the request that must be set."""

    def build(self, request: SubmitOptions, command: Command) -> list[dict[str, Any]]:
        """Everything that is sent, from a request by `completed`; it sends no requests itself. Raises UsageError."""

    def as_text(self, documents: list[dict[str, Any]]) -> str:
        """The documents as text, for a person or another tool."""

    def submit(self, request: SubmitOptions, documents: list[dict[str, Any]]) -> Handle:
        """Send them. Raises JobError."""


def completed(request: SubmitOptions, command: Command, needs: Sequence[str]) -> SubmitOptions:
    """The request with a name; in a dry run with placeholders such as <IMAGE> for what is missing.

    Raises UsageError with the missing flags, and for an image or region that is none. A copied placeholder counts as
    missing.
    """
    known = options.options_of(SubmitOptions)
    missing = [field for field in needs if (getattr(request, field) or "<").startswith("<")]
    if missing and not request.dry_run:
        flags = ", ".join(known[field][0].flag for field in missing)
        raise UsageError(f"{flags} must be given to submit this; --dry-run shows the request with placeholders.")
    submit_values.check_image_and_region(request)
    filled: dict[str, Any] = {field: placeholder(known[field][0].name) for field in missing}
    return dataclasses.replace(request, name=request.name or command.name, **filled)


def refuse_unused(request: SubmitOptions, target: str, also: Mapping[str, str] = {}) -> None:
    """Raise UsageError for the first option that was set though the target has no use for it.

    `also` maps further fields without use to the reason.
    """
    for field, (each, _) in options.options_of(SubmitOptions).items():
        value, why = getattr(request, field), each.refused.get(target) or also.get(field)
        if why and value != getattr(SubmitOptions, field):
            given = "given" if value is True else repr(value)
            raise UsageError(f"{each.flag} is {given}, and {target} has no use for it ({why}): leave it out.")


def placeholder(name: str) -> str:
    """What a dry run shows for a missing value."""
    return f"<{name.upper().replace('-', '_')}>"


def lasting_output(request: SubmitOptions, command: Command) -> str | None:
    """The --output to add to the command, None if it has one or writes no run.

    Raises UsageError for an output that would be lost with the machine; a dry run shows a placeholder for none.
    """
    output = command.output or ""
    if not command.writes_run or in_bucket(output) or _on_claim(request, output):
        return None
    if command.output is None and request.dry_run:
        return f"s3://{placeholder('bucket')}/runs"
    given = "not set" if command.output is None else repr(command.output)
    raise UsageError(
        f"--output is {given}, and what is on the job's machine is lost with it: use s3://, gs://, az:// or a folder "
        "of a --pvc."
    )


def check_files(request: SubmitOptions, command: Command) -> None:
    """Raise UsageError for a file that the job's machine does not have, or that is lost in its working folder.

    An absolute path may be one of the image, or mounted; a relative one is of this machine's working folder.
    """
    _check_labels(request, command)
    known, values = options_by_key(command.configuration.settings), command.configuration.settings.by_key()
    named = []
    for key in ("data.uri", "model.weights", "run.init_from"):
        if (value := values.get(key)) and not re.fullmatch(known[key][0].names, value):
            named.append((known[key][0].flag, value))
    for flag, value in [*named, *command.reads]:
        if _is_relative(value):
            raise UsageError(
                f"{flag} is {value!r}, which the job does not have: use s3://, gs://, az://, https:// or an absolute "
                "path in the image or of a --pvc."
            )
    for flag, value in command.writes:
        if _is_relative(value):
            raise UsageError(
                f"{flag} is {value!r}, and what is on the job's machine is lost with it: leave it out, or with "
                "k8s use a folder of a --pvc."
            )


def _is_relative(uri: str) -> bool:
    return "://" not in uri and not Path(uri).is_absolute()


def _check_labels(request: SubmitOptions, command: Command) -> None:
    """Raise UsageError for a file of labels that the job's machine does not have.

    Absolute paths that are not here may be mounted there.
    """
    labels = command.configuration.settings.data.labels.removeprefix("file://")
    if labels == FOLDERS or "://" in labels or _on_claim(request, labels):
        return
    if not Path(labels).is_absolute() or Path(labels).exists():
        raise UsageError(
            f"--labels is {labels!r}, which the job does not have: use s3://, gs://, az://, https:// or a file of a "
            "--pvc."
        )


def _on_claim(request: SubmitOptions, uri: str) -> bool:
    folder = posixpath.normpath(uri.removeprefix("file://"))
    return any(f"{folder}/".startswith(f"{path}/") for _, path in request.claims)


def pages(
    call: Callable[..., dict[str, Any]], operation: str, token: str, **parameters: Any
) -> Iterator[dict[str, Any]]:
    """All pages of an AWS operation that lists; `token` is the field with which it asks for the next one."""
    more: dict[str, str] = {}
    while True:
        page = call(operation, **parameters, **more)
        yield page
        if not page.get(token):
            return
        more = {token: page[token]}


def our_code(code: int) -> int:
    """Our exit code for a container's: 137 (killed, for memory or after its grace) is transient, others are bugs."""
    if code == _KILLED:
        return TransientError.exit_code
    return code if code in _EXIT_CODES else JobError.exit_code
