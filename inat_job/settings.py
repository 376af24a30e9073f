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
RUN_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")  # . and .. are other folders
BLOCKS = 5
WEIGHTS_NAME = r"(\w+_Weights\.)?[A-Z][A-Z0-9_]*"
"""How torchvision names weights: DEFAULT, or ResNet50_Weights.IMAGENET1K_V2."""
EXPORT_FORMATS = ("onnx", "pt2")
# Settings of Part B that only have an effect with some strategies: flag, field, strategies.
_EFFECTIVE_WITH = (
    ("--last-k", "last_k", ("last-k",)),
    ("--layer-decay", "layer_decay", ("gradual", "full", "lp-ft")),  # in which each stage has its own learning rate
    ("--feature-views", "feature_views", ("head", "last-k", "gradual", "lp-ft")),  # which begin with a frozen part
)


class _Section:
    def __post_init__(self) -> None:
        options.check(self)


LONGEST_LEASE_S = 600.0
"""A job that waits for a lease does not count as alive, so this is less than what the liveness check allows."""


@dataclass(frozen=True)
class DataSettings(_Section):
    """Which images, and how they are cut."""

    uri: str = option(
        DEFAULT_DATA,
        "Data set: an archive, a folder or prefix of images, or demo: for a generated one; #sha256=... verifies it",
        name="data",
        uri=True,
        names="demo:",
    )
    cache_dir: str = option(
        "cache", "Folder for downloads, decoded images and features", metavar="PATH", in_fingerprint=False
    )
    image_size: int = option(224, "Side of the network's square input in pixels", minimum=32, maximum=1024)
    eval_crop: float = option(
        0.95, "Share of the short side that the centre crop keeps in evaluation", minimum=0.1, maximum=1.0
    )
    max_broken: float = option(0.01, "Share of images that may be unreadable", minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class StorageSettings(_Section):
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
class RunSettings(_Section):
    """Where a run is stored and how it is resumed."""

    output: str = option(
        "runs", "Local folder or s3:// prefix that holds the run folders", in_fingerprint=False, uri=True
    )
    run_id: str | None = option(
        None,
        "Name of the run folder; the same name resumes the run",
        metavar="NAME",
        shown_default="made from the settings that decide the result",
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
class FiveBlockSettings(_Section):
    """Part A's network."""

    filters: tuple[int, ...] = option(
        (32,), "Filters of the five blocks, such as 32,64,128,256,512, or of the first", minimum=1
    )
    filter_organisation: str = option(
        "double", "How a single number in --filters changes from block to block", choices=("same", "double", "half")
    )
    kernel_sizes: tuple[int, ...] = option(
        (3,), "Kernel sizes of the five blocks, or one for all", minimum=1, maximum=31
    )
    activation: str = option("relu", "Activation function", choices=("relu", "gelu", "silu", "mish"))
    dense: int = option(256, "Neurons of the dense layer", minimum=1)
    pooling: str = option(
        "gap", "What the dense layer reads: global averages (gap) or all values", choices=("flatten", "gap")
    )
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
                "give only the first."
            )


@dataclass(frozen=True)
class BackboneSettings(_Section):
    """Part B's network and how much of it is trained."""

    backbone: str = option("resnet50", "A classification model of torchvision, but SqueezeNet", metavar="NAME")
    weights: str = option(
        "DEFAULT",
        "Pretrained weights: torchvision's name for them, a path or URI with an optional #sha256=..., or none",
        uri=True,
        names=f"none|{WEIGHTS_NAME}",
    )
    allow_partial_weights: bool = option(False, "Accept weights that lack some of the network's layers")
    strategy: str = option(
        "full",
        "What is trained: the head, the last stages too, one stage more at a time, everything, or everything at a "
        "tenth of --lr from the best linear head (lp-ft)",
        choices=("head", "last-k", "gradual", "full", "lp-ft"),
    )
    last_k: int = option(1, "Stages that --strategy last-k trains besides the head", minimum=1)
    layer_decay: float = option(
        0.3,
        "Learning rate of a stage over that of the next, with --strategy gradual, full or lp-ft",
        minimum=0.01,
        maximum=1.0,
    )
    feature_views: int = option(
        2,
        "Augmented views of each image whose features the frozen stem computes once; 0 computes a new view every epoch",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, field, strategies in _EFFECTIVE_WITH:
            if self.strategy not in strategies and getattr(self, field) != getattr(type(self), field):
                raise UsageError(
                    f"{flag} does nothing with --strategy {self.strategy}: leave it out, or use "
                    f"{' or '.join(strategies)}."
                )


@dataclass(frozen=True)
class TrainSettings(_Section):
    """The recipe, and the device that it runs on."""

    epochs: int = option(30, "Passes over the training images", minimum=1)
    max_time: float | None = option(
        None,
        "Stop training after this long, such as 90m or 1h30m, then test; a number alone is in seconds",
        shown_default="never",
        duration=True,
        minimum=1.0,
    )
    batch_size: int = option(64, "Images per optimiser step, over all devices", minimum=2)
    accumulate: int = option(1, "Slices that a batch is processed in, to save memory", minimum=1)
    lr: float = option(2e-3, "Peak learning rate", minimum=1e-8, maximum=10.0)
    weight_decay: float = option(0.05, "AdamW's weight decay", minimum=0.0, maximum=10.0)
    warmup: float = option(0.1, "Share of the steps in which the learning rate rises", minimum=0.0, maximum=0.9)
    label_smoothing: float = option(0.1, "Label smoothing", minimum=0.0, maximum=0.9)
    augment: bool = option(True, "Random crop, flip, rotation and colour")
    crop_scale: float = option(0.35, "Smallest share of an image that a random crop keeps", minimum=0.05, maximum=1.0)
    rotation: float = option(0.0, "Largest random rotation in degrees, either way", minimum=0.0, maximum=180.0)
    colour: float = option(0.3, "Largest change of brightness, contrast and saturation", minimum=0.0, maximum=0.95)
    early_stop: int | None = option(
        None, "Stop after this many epochs without a better validation accuracy", shown_default="never", minimum=1
    )
    seed: int = option(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)
    accelerator: str = option(
        "auto",
        "Device to run on; auto is a GPU if there is one",
        choices=("auto", "cpu", "cuda", "mps"),
        in_fingerprint=False,
    )
    precision: str = option(
        "auto",
        "Arithmetic of training; auto is the lowest that the device handles well. test is in fp32 unless this is given",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    devices: int | None = option(
        None,
        "Devices of this machine to train on",
        shown_default="all GPUs, or one CPU",
        minimum=1,
        in_fingerprint=False,
    )
    num_nodes: int | None = option(
        None,
        "Machines that train together",
        shown_default="as the platform says, or 1",
        minimum=1,
        in_fingerprint=False,
    )
    rendezvous_minutes: float = option(
        60.0,
        "Minutes that machines wait for each other, which may still prepare images or be started",
        metavar="MINUTES",
        minimum=0.1,
        in_fingerprint=False,
    )
    sync_batch_norm: bool = option(False, "Batch norm over the images of all devices, instead of each device's own")
    resident_share: float = option(
        0.5,
        "Keep all images in the GPU's memory if they take up no more than this share of what is free",
        minimum=0.0,
        maximum=1.0,
        in_fingerprint=False,
    )
    compile: bool = option(False, "Compile the network with torch.compile; needs a C compiler")
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
        """Plain values by section and field, without the secrets of URIs."""
        plain: dict[str, dict[str, Any]] = {name: {} for name in self.sections()}
        for name, field, each, value in self._values():
            plain[name][field] = public_uri(value) if each.uri and value else value
        return plain

    def anchored(self) -> "Settings":
        """The same settings, with local data named by an absolute path."""
        each = options.options_of(DataSettings)["uri"][0]
        if "://" in self.data.uri or re.fullmatch(each.names, self.data.uri):
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, uri=options.absolute(self.data.uri)))

    def fingerprint(self) -> str:
        """SHA-256 over what decides the result: data, model, recipe and seed."""
        deciding: dict[str, Any] = {"part": self.part}
        for name, field, each, value in self._values():
            if each.in_fingerprint:
                deciding[f"{name}.{field}"] = options.fingerprint_value(each, value)
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def _values(self) -> Iterator[tuple[str, str, Option, Any]]:
        """Section, field, option and value of every setting."""
        for name, section in self.sections().items():
            for field, (each, _) in options.options_of(type(section)).items():
                yield name, field, each, getattr(section, field)

    @property
    def run_id(self) -> str:
        """The given run id, or the one that follows from the settings."""
        return self.run.run_id or f"part{self.part}-{self.fingerprint()[:12]}"
