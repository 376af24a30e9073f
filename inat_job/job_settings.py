"""Settings of a job beside its training: object storage, the run folder, and Weights & Biases."""

import re
from dataclasses import dataclass

from inat_job.errors import UsageError
from inat_job.options import SettingsSection, option

RUN_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")  # . and .. are other folders
_SECRET = re.compile(
    r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+"
    r"|projects/[a-z0-9.:-]+/secrets/[\w-]+(/versions/[\w-]+)?",
    re.ASCII,
)
STANDARD = "standard"
"""The preset that has the defaults."""
EXPORT_FORMATS = ("onnx", "pt2")
LONGEST_LEASE_S = 600.0
"""A job that waits for a lease does not count as alive, so this is less than what the liveness check allows."""


@dataclass(frozen=True)
class StorageSettings(SettingsSection):
    """How object storage is accessed; credentials and endpoint come from each store's usual variables."""

    sse_kms_key_id: str | None = option(
        None,
        "KMS key that encrypts objects written to S3",
        metavar="ID",
        shown_default="as the bucket says",
        in_fingerprint=False,
    )
    requester_pays: bool = option(False, "Pay for requests to a requester-pays bucket (S3 only)", in_fingerprint=False)
    anonymous: bool = option(False, "Send unsigned requests, for public buckets", in_fingerprint=False)


@dataclass(frozen=True)
class RunSettings(SettingsSection):
    """Where a run is stored and how it is resumed."""

    output: str = option(
        "runs",
        "Local folder or s3://, gs:// or az:// prefix that holds the run folders",
        in_fingerprint=False,
        uri=True,
    )
    run_id: str | None = option(
        None,
        "Name of the run folder; the same name resumes the run",
        metavar="NAME",
        shown_default="made from the settings that decide the result",
        in_fingerprint=False,
    )
    preset: str = option(
        STANDARD,
        "Recipe that other options change: for minutes on a laptop (quick), the defaults (standard), for a GPU (best)",
        choices=("quick", STANDARD, "best"),
        in_fingerprint=False,
    )
    resume: str = option(
        "auto",
        "An existing run is resumed (auto), refused (never) or required (must)",
        choices=("auto", "never", "must"),
        in_fingerprint=False,
    )
    preflight: bool = option(False, "First check that everything the job needs is there", in_fingerprint=False)
    force: bool = option(False, "With --resume never: delete an existing run and start again", in_fingerprint=False)
    init_from: str | None = option(
        None,
        "Start from the best weights of another run: its id under --output, or its URI",
        shown_default="new weights",
        uri=True,
        names="[^/]+",
    )
    checkpoint_minutes: float = option(
        5.0, "Minutes between checkpoints within an epoch", metavar="MINUTES", minimum=0.0, in_fingerprint=False
    )
    grace_seconds: float = option(
        30.0, "Seconds between the stop signal and the kill", metavar="SECONDS", minimum=1.0, in_fingerprint=False
    )
    lease_seconds: float = option(
        60.0,
        "Seconds of silence after which another job may take the run over",
        metavar="SECONDS",
        minimum=4.0,
        maximum=LONGEST_LEASE_S,
        in_fingerprint=False,
    )
    export: tuple[str, ...] = option(
        (),
        "More formats of the trained network: onnx, pt2 (torch.export) or both",
        choices=EXPORT_FORMATS,
        shown_default="none",
        in_fingerprint=False,
    )
    price_per_hour: float | None = option(
        None,
        "Price of one device for an hour, in any currency, for the report",
        shown_default="not reported",
        minimum=0.0,
        in_fingerprint=False,
    )

    pictures: bool = option(
        True, "Draw pictures for the report: curves, predictions, mistakes, what the network sees", in_fingerprint=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run_id is not None and not RUN_ID.fullmatch(self.run_id):
            raise UsageError(f"--run-id is {self.run_id!r}: use 1 to 64 of the characters A-Z a-z 0-9 . _ -")


@dataclass(frozen=True)
class TrackerSettings(SettingsSection):
    """Weights & Biases, and what else tracks a run."""

    mode: str = option(
        "auto",
        "Track the run with Weights & Biases; auto is online if there is a key, else offline",
        name="wandb",
        choices=("online", "offline", "off", "auto"),
        in_fingerprint=False,
    )
    project: str = option("inat-job", "wandb project", name="wandb-project", metavar="NAME", in_fingerprint=False)
    entity: str | None = option(
        None,
        "wandb user or team",
        name="wandb-entity",
        metavar="NAME",
        shown_default="the key's own",
        in_fingerprint=False,
    )
    key_name: str | None = option(
        None,
        "Secret that holds the wandb key, read with the job's role: its ARN in AWS, or Google's projects/P/secrets/S",
        name="wandb-secret",
        metavar="NAME",
        shown_default="none",
        in_fingerprint=False,
    )
    loggers: tuple[str, ...] = option(
        (),
        "Log with TensorBoard (files in the run folder), MLflow (server in MLFLOW_TRACKING_URI) or both too",
        name="tracker",
        choices=("tensorboard", "mlflow"),
        shown_default="none",
        in_fingerprint=False,
    )
    tags: tuple[str, ...] = option(
        (), "wandb tags", name="wandb-tags", metavar="NAMES", shown_default="none", in_fingerprint=False
    )
    group: str | None = option(
        None,
        "wandb group",
        name="wandb-group",
        metavar="NAME",
        shown_default="none; in a sweep its id",
        in_fingerprint=False,
    )
    notes: str | None = option(
        None, "wandb notes", name="wandb-notes", metavar="TEXT", shown_default="none", in_fingerprint=False
    )
    artifacts: bool = option(
        False, "Upload the trained model to wandb as an artifact", name="wandb-artifacts", in_fingerprint=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.key_name is not None and not _SECRET.fullmatch(self.key_name):  # which may be the key itself
            raise UsageError(
                "--wandb-secret names no secret: write it as arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME, "
                "or in Google Cloud as projects/PROJECT/secrets/NAME."
            )
