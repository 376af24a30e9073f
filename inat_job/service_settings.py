"""Settings of the services that a run uses: object storage, and Weights & Biases."""

from dataclasses import dataclass

from inat_job.options import SettingsSection, option


@dataclass(frozen=True)
class StorageSettings(SettingsSection):
    """How object storage is accessed; credentials and endpoint come from the usual AWS variables."""

    sse_kms_key_id: str | None = option(
        None,
        "KMS key that encrypts objects written to S3",
        metavar="ID",
        shown_default="as the bucket says",
        in_fingerprint=False,
    )
    requester_pays: bool = option(False, "Pay for requests to a requester-pays bucket", in_fingerprint=False)
    anonymous: bool = option(False, "Send unsigned requests, for public buckets", in_fingerprint=False)


@dataclass(frozen=True)
class TrackerSettings(SettingsSection):
    """Weights & Biases."""

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
