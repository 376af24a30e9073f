"""Every setting of a run, as frozen sections that check themselves, and the fingerprint of what decides the result."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from inat_job import options
from inat_job.errors import UsageError
from inat_job.options import Option, option
from inat_job.options import public_uri as public_uri

DEFAULT_DATA = "https://storage.googleapis.com/wandb_datasets/nature_12K.zip"
RUN_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")  # . and .. would be other folders
BLOCKS = 5
WEIGHTS_NAME = r"(\w+_Weights\.)?[A-Z][A-Z0-9_]*"
"""How torchvision names weights: DEFAULT, or ResNet50_Weights.IMAGENET1K_V2."""
# Settings of Part B that have an effect with some strategies alone: flag, field, strategies.
_USERS = (
    ("--last-k", "last_k", ("last-k",)),
    ("--layer-decay", "layer_decay", ("gradual", "full")),  # in which each stage has its own learning rate
    ("--feature-views", "feature_views", ("head", "last-k", "gradual")),  # which begin with a frozen part
)


class _Section:
    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True)
class DataSettings(_Section):
    """Which images, and how they are cut."""

    uri: str = option(
        DEFAULT_DATA,
        "Archive, prefix, folder or demo:, with an optional #sha256=",
        name="data",
        uri=True,
        names="demo:",
    )
    cache_dir: str = option("cache", "Folder for downloads and decoded images", decides=False)
    image_size: int = option(224, "Side of the network's input in pixels", minimum=32, maximum=1024)
    eval_crop: float = option(0.95, "Share of the short side that the centre crop keeps", minimum=0.1, maximum=1.0)
    max_broken: float = option(0.01, "Share of images that may be unreadable", minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class StorageSettings(_Section):
    """How object storage is spoken to; credentials and endpoint come from the usual AWS variables."""

    sse_kms_key_id: str | None = option(None, "KMS key that encrypts what is written to S3", decides=False)
    requester_pays: bool = option(False, "Pay for requests to a requester-pays bucket", decides=False)
    anonymous: bool = option(False, "Send unsigned requests, for public buckets", decides=False)


@dataclass(frozen=True)
class RunSettings(_Section):
    """Where a run lives and how it is taken up again."""

    output: str = option("runs", "Local folder or s3:// prefix for run folders", decides=False, uri=True)
    run_id: str | None = option(None, "Name of the run folder; else made from what decides the result", decides=False)
    resume: str = option("auto", "Take up an earlier attempt", choices=("auto", "never", "must"), decides=False)
    preflight: bool = option(False, "Look first whether all is there that the job needs", decides=False)
    force: bool = option(False, "With --resume never: start an existing run anew", decides=False)
    init_from: str | None = option(
        None, "Run (id under --output, or URI) whose best weights to start from", uri=True, names="[^/]+"
    )
    checkpoint_minutes: float = option(5.0, "Minutes between checkpoints within an epoch", minimum=0.0, decides=False)
    grace_seconds: float = option(30.0, "Seconds between the stop signal and the kill", minimum=1.0, decides=False)
    lease_seconds: float = option(
        60.0, "Seconds of silence after which another job may take the run over", minimum=4.0, decides=False
    )
    price_per_hour: float | None = option(
        None, "What one device costs an hour, in any currency, for the report", minimum=0.0, decides=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run_id is not None and not RUN_ID.fullmatch(self.run_id):
            raise UsageError(f"--run-id is {self.run_id!r}: use 1 to 64 of the characters A-Z a-z 0-9 . _ -")


@dataclass(frozen=True)
class FiveBlockSettings(_Section):
    """Part A's network."""

    filters: tuple[int, ...] = option((32,), "Filters of the five blocks, or of the first", minimum=1)
    filter_organisation: str = option("double", "With one number in --filters", choices=("same", "double", "half"))
    kernel_sizes: tuple[int, ...] = option(
        (3,), "Kernel sizes of the five blocks, or one for all", minimum=1, maximum=31
    )
    activation: str = option("relu", "Activation", choices=("relu", "gelu", "silu", "mish"))
    dense: int = option(256, "Neurons of the dense layer", minimum=1)
    pooling: str = option("gap", "From maps to the dense layer", choices=("flatten", "gap"))
    batch_norm: bool = option(True, "Batch norm after each convolution")
    dropout: float = option(0.2, "Dropout before the output layer", minimum=0.0, maximum=0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, values in (("--filters", self.filters), ("--kernel-sizes", self.kernel_sizes)):
            if len(values) not in (1, BLOCKS):
                raise UsageError(f"{flag} has {len(values)} numbers: give one, or one for each of the {BLOCKS} blocks.")
        if len(self.filters) > 1 and self.filter_organisation != type(self).filter_organisation:
            raise UsageError(
                f"--filter-organisation is {self.filter_organisation} and --filters has a number for each block: "
                "give that of the first alone."
            )


@dataclass(frozen=True)
class BackboneSettings(_Section):
    """Part B's network and how much of it is trained."""

    backbone: str = option("resnet50", "A classification model of torchvision's registry")
    weights: str = option(
        "DEFAULT",
        "torchvision's name, a path or URI with an optional #sha256=, or none",
        uri=True,
        names=f"none|{WEIGHTS_NAME}",
    )
    allow_partial_weights: bool = option(False, "Accept weights that lack some of the network's layers")
    strategy: str = option("full", "What is trained", choices=("head", "last-k", "gradual", "full"))
    last_k: int = option(1, "Stages that --strategy last-k trains beside the head", minimum=1)
    layer_decay: float = option(0.3, "Learning rate of a stage over that of the next", minimum=0.01, maximum=1.0)
    feature_views: int = option(
        2, "Augmented views of a image that a frozen part sees, each once; 0 is a new one in each epoch", minimum=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, field, users in _USERS:
            if self.strategy not in users and getattr(self, field) != getattr(type(self), field):
                raise UsageError(
                    f"{flag} does nothing with --strategy {self.strategy}: leave it out, or use {' or '.join(users)}."
                )


@dataclass(frozen=True)
class TrainSettings(_Section):
    """The recipe, and the device it runs on."""

    epochs: int = option(30, "Passes over the training images", minimum=1)
    max_time: float | None = option(None, "End training after this long, then test", duration=True, minimum=1.0)
    batch_size: int = option(64, "ImageDataModule per optimiser step, over all devices", minimum=2)
    accumulate: int = option(1, "Slices that a batch is worked through in, to save memory", minimum=1)
    lr: float = option(2e-3, "Peak learning rate", minimum=1e-8, maximum=10.0)
    weight_decay: float = option(0.05, "AdamW's weight decay", minimum=0.0, maximum=10.0)
    warmup: float = option(0.1, "Share of the steps in which the rate rises", minimum=0.0, maximum=0.9)
    label_smoothing: float = option(0.1, "Label smoothing", minimum=0.0, maximum=0.9)
    augment: bool = option(True, "Random crop, flip, rotation and colour")
    crop_scale: float = option(0.35, "Smallest share of a image that a random crop keeps", minimum=0.05, maximum=1.0)
    rotation: float = option(0.0, "Largest random rotation in degrees, either way", minimum=0.0, maximum=180.0)
    colour: float = option(0.3, "Largest change of brightness, contrast and saturation", minimum=0.0, maximum=0.95)
    early_stop: int | None = option(None, "Epochs without a better validation accuracy that end training", minimum=1)
    seed: int = option(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)
    accelerator: str = option("auto", "Device", choices=("auto", "cpu", "cuda", "mps"), decides=False)
    precision: str = option("auto", "Arithmetic of the forward pass", choices=("auto", "bf16", "fp16", "fp32"))
    devices: int | None = option(None, "Devices on this machine, else all its GPUs", minimum=1, decides=False)
    num_nodes: int | None = option(None, "Machines, else as the platform says", minimum=1, decides=False)
    sync_batch_norm: bool = option(False, "Batch norm over all devices' images, and not over each one's")
    resident_share: float = option(
        0.5,
        "Share of a GPU's free memory that all images may take, to stay there",
        minimum=0.0,
        maximum=1.0,
        decides=False,
    )
    compile: bool | None = option(None, "Compile the network, else where it pays; needs a C compiler", was=False)
    deterministic: bool = option(False, "Refuse operations whose result varies between runs")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"--accumulate is {self.accumulate}: it must divide --batch-size, which is {self.batch_size}."
            )


@dataclass(frozen=True)
class TrackerSettings(_Section):
    """Weights & Biases."""

    mode: str = option(
        "auto",
        "Track with wandb; auto is online with a key",
        name="wandb",
        choices=("online", "offline", "off", "auto"),
        decides=False,
    )
    project: str = option("inat-job", "Tracker project", name="wandb-project", decides=False)
    entity: str | None = option(None, "Tracker user or team", name="wandb-entity", decides=False)


@dataclass(frozen=True)
class Settings:
    """One run, completely."""

    part: str
    model: FiveBlockSettings | BackboneSettings
    train: TrainSettings
    data: DataSettings = DataSettings()
    storage: StorageSettings = StorageSettings()
    run: RunSettings = RunSettings()
    tracker: TrackerSettings = TrackerSettings()

    def sections(self) -> dict[str, Any]:
        """Section by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "part"}

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section and field, without what a URI must not show."""
        plain: dict[str, dict[str, Any]] = {name: {} for name in self.sections()}
        for name, field, each, value in self._values():
            plain[name][field] = public_uri(value) if each.uri and value else value
        return plain

    def anchored(self) -> "Settings":
        """The same with a path that holds in any folder for local data."""
        each = options.options_of(DataSettings)["uri"][0]
        if "://" in self.data.uri or re.fullmatch(each.names, self.data.uri):
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, uri=options.absolute(self.data.uri)))

    def fingerprint(self) -> str:
        """SHA-256 over what decides the result: data, model, recipe and seed."""
        deciding: dict[str, Any] = {"part": self.part}
        for name, field, each, value in self._values():
            if each.decides:
                deciding[f"{name}.{field}"] = options.deciding(each, value)
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def _values(self) -> Iterator[tuple[str, str, Option, Any]]:
        """Section, field, option and value of everything."""
        for name, section in self.sections().items():
            for field, (each, _) in options.options_of(type(section)).items():
                yield name, field, each, getattr(section, field)

    @property
    def run_id(self) -> str:
        """The given run id, or one that the same command always gets."""
        return self.run.run_id or f"part{self.part}-{self.fingerprint()[:12]}"
