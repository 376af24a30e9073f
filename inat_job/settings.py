"""Every setting of a run, as frozen sections that check themselves, and the fingerprint of what decides the result."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from inat_job.errors import UsageError
from inat_job.job_settings import RunSettings, StorageSettings, TrackerSettings
from inat_job.options import Option, SettingsSection, absolute, fingerprint_value, option, options_of, public_uri

DEFAULT_DATA = "https://storage.googleapis.com/wandb_datasets/nature_12K.zip"
FOLDERS = "none"
"""The value of --labels with which the folders of the images decide."""

BLOCKS = 5
WEIGHTS_NAME = r"(\w+_Weights\.)?[A-Z][A-Z0-9_]*"
"""How torchvision names weights: DEFAULT, or ResNet50_Weights.IMAGENET1K_V2."""
_FIXED_SIZE = r"(vit|maxvit)_.*"  # of torchvision's networks
# Settings of Part B that only have an effect with some strategies: flag, field, strategies.
_EFFECTIVE_WITH = (
    ("--last-k", "last_k", ("last-k",)),
    ("--freeze-batch-norm", "freeze_batch_norm", ("last-k", "gradual", "full", "lp-ft")),
    ("--layer-decay", "layer_decay", ("gradual", "full", "lp-ft")),  # in which each stage has its own learning rate
    ("--feature-views", "feature_views", ("head", "last-k", "gradual", "lp-ft")),  # which begin with a frozen part
)


@dataclass(frozen=True)
class DataSettings(SettingsSection):
    """Which images, and how they are cut."""

    uri: str = option(
        DEFAULT_DATA,
        "Data set: an archive, a folder or prefix of images, or demo: for a generated one; #sha256=... verifies it",
        name="data",
        uri=True,
        names="demo:",
    )
    labels: str = option(
        FOLDERS,
        "CSV, TSV or Parquet file of the images' path, label and maybe split; with none the folders decide",
        uri=True,
        names=FOLDERS,
        off=(FOLDERS,),
    )
    test_share: float | None = option(
        None,
        "Share of each class that is split off as test set, by content, where the data set has none",
        shown_default="0.2 where the data set has no splits",
        minimum=0.01,
        maximum=0.9,
        off=(None,),
    )
    val_share: float | None = option(
        None,
        "Share of the training images that is held out for validation, unless the data set has its own",
        shown_default="0.2",
        minimum=0.01,
        maximum=0.9,
        off=(None,),
    )
    cache_dir: str = option(
        "cache", "Folder for downloads, decoded images and features", metavar="PATH", in_fingerprint=False
    )
    image_size: int = option(224, "Side of the network's square input in pixels", minimum=32, maximum=1024)
    test_size: int | None = option(
        None,
        "Side of the input in validation, test and the exported model, in pixels",
        shown_default="--image-size",
        minimum=32,
        maximum=1024,
        off=(None,),
    )
    eval_crop: float = option(
        0.95,
        "Share of the short side that the centre crop keeps in evaluation; with other weights, Part B's is theirs",
        minimum=0.1,
        maximum=1.0,
    )
    max_broken: float = option(0.01, "Share of images that may be unreadable", minimum=0.0, maximum=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_size < self.image_size:
            raise UsageError(f"--test-size is {self.test_size}: it must be at least --image-size, {self.image_size}.")

    @property
    def eval_size(self) -> int:
        """Side of the evaluation views, which is the largest of all."""
        return self.test_size or self.image_size


@dataclass(frozen=True)
class FiveBlockSettings(SettingsSection):
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
    batch_norm: bool = option(True, "Batch norm in each block")
    dropout: float = option(0.2, "Dropout before the output layer", minimum=0.0, maximum=0.95)

    @property
    def takes_one_size(self) -> str:
        """What fixes the size of the network's input, empty if it takes others too."""
        return "--pooling flatten" if self.pooling == "flatten" else ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, values in (("--filters", self.filters), ("--kernel-sizes", self.kernel_sizes)):
            if len(values) not in (1, BLOCKS):
                raise UsageError(f"{flag} has {len(values)} numbers: give one, or one for each of the {BLOCKS} blocks.")
        if len(self.filters) > 1 and self.filter_organisation != type(self).filter_organisation:
            raise UsageError(
                f"--filter-organisation is {self.filter_organisation}, but --filters is "
                f"{','.join(map(str, self.filters))}: leave the former out, or give --filters one number, such as 64."
            )


@dataclass(frozen=True)
class BackboneSettings(SettingsSection):
    """Part B's network and how much of it is trained."""

    backbone: str = option(
        "resnet50", "A classification model of torchvision, but SqueezeNet, or of timm as timm/NAME", metavar="NAME"
    )
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
    freeze_batch_norm: bool = option(
        False, "Keep the statistics and parameters of pretrained batch norms while their stages train", off=(False,)
    )

    @property
    def takes_one_size(self) -> str:
        """As Part A's."""
        return f"--backbone {self.backbone}" if re.fullmatch(_FIXED_SIZE, self.backbone) else ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_batch_norm and self.weights == "none":
            raise UsageError(
                "--freeze-batch-norm keeps pretrained batch norms, and --weights none has none: leave one of them out."
            )
        for flag, field, strategies in _EFFECTIVE_WITH:
            if self.strategy not in strategies and getattr(self, field) != getattr(type(self), field):
                raise UsageError(
                    f"{flag} does nothing with --strategy {self.strategy}: leave it out, or use "
                    f"{' or '.join(strategies)}."
                )


@dataclass(frozen=True)
class TrainSettings(SettingsSection):
    """The recipe, and the device that it runs on."""

    epochs: int = option(30, "Passes over the training images", minimum=1)
    min_images_seen: int = option(
        0, "Train for more epochs until so many images were seen, repeats counted; 0 with --epochs", minimum=0, off=(0,)
    )
    max_time: float | None = option(
        None,
        "Shorten training to what fits into this long, such as 90m or 1h30m; a number alone is in seconds",
        shown_default="never",
        duration=True,
        minimum=1.0,
    )
    batch_size: int = option(64, "Images per optimiser step, over all devices", minimum=2)
    accumulate: int = option(1, "Slices that a batch is processed in, to save memory", minimum=1)
    optimiser: str = option(
        "adamw",
        "AdamW; Muon for convolutions and AdamW for the rest; or SGD with Nesterov momentum, whose --lr is larger",
        choices=("adamw", "muon", "sgd"),
        off=("adamw",),
    )
    lr: float = option(2e-3, "Peak learning rate", minimum=1e-8, maximum=10.0)
    weight_decay: float = option(0.05, "Weight decay of all but norms and biases", minimum=0.0, maximum=10.0)
    warmup: float = option(0.1, "Share of the steps in which the learning rate rises", minimum=0.0, maximum=0.9)
    label_smoothing: float = option(0.1, "Label smoothing", minimum=0.0, maximum=0.9)
    ema: float = option(
        0.0,
        "Decay of the weights' moving average, which is what is tested; 0 has none",
        minimum=0.0,
        maximum=0.99999,
        off=(0.0,),
    )
    augment: bool = option(True, "Random crop, flip, rotation and colour, and what else changes training images")
    crop_scale: float = option(0.35, "Smallest share of an image that a random crop keeps", minimum=0.05, maximum=1.0)
    rotation: float = option(0.0, "Largest random rotation in degrees, either way", minimum=0.0, maximum=180.0)
    colour: float = option(0.3, "Largest change of brightness, contrast and saturation", minimum=0.0, maximum=0.95)
    flip: str = option(
        "random",
        "Mirror images at random, alternately (each time the other way than in the last epoch), or never",
        choices=("random", "alternating", "none"),
        off=("random",),
    )
    trivial_augment: float = option(
        0.0,
        "Strength of TrivialAugment's geometry and colours, one per image and epoch",
        minimum=0,
        maximum=1,
        off=(0.0,),
    )
    erase: float = option(0.0, "Probability of a random box erased from an image", minimum=0, maximum=1, off=(0.0,))
    mixup: float = option(0.0, "Alpha of mixup; 0 is off, and with --cutmix each batch gets one", minimum=0, off=(0.0,))
    cutmix: float = option(0.0, "Alpha of CutMix; 0 is off, 1 is usual", minimum=0, off=(0.0,))
    mix_until: float = option(
        0.8, "Share of the epochs in which --mixup and --cutmix mix images", minimum=0, maximum=1, off=(0.8,)
    )
    start_size: int | None = option(
        None,
        "Side of the views in the first epoch in pixels; it grows to --image-size over two thirds of the epochs",
        shown_default="--image-size",
        minimum=32,
        off=(None,),
    )
    early_stop: int | None = option(
        None, "Stop after this many epochs without a better validation accuracy", shown_default="never", minimum=1
    )
    class_weights: str = option(
        "none",
        "Weights of the classes in the training loss; balanced gives each class the same, however few its images",
        choices=("none", "balanced"),
        off=("none",),
    )
    sampling: str = option(
        "shuffled",
        "An epoch has each training image once (shuffled), or images of each class equally often (balanced)",
        choices=("shuffled", "balanced"),
        off=("shuffled",),
    )
    final: bool = option(
        False,
        "Train on the validation images too, once all is chosen: the last epoch's weights are the result",
        off=(False,),
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
        "Arithmetic of training; auto is the lowest that the device handles well",
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
        if self.class_weights == self.sampling == "balanced":
            raise UsageError(
                "--class-weights and --sampling are both balanced, which favours small classes twice: use one of them."
            )
        if self.final and self.early_stop is not None:
            raise UsageError(
                f"--early-stop is {self.early_stop}, and --final leaves no image for validation: leave one of them out."
            )

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed in some of the epochs."""
        return self.augment and max(self.mixup, self.cutmix) > 0


@dataclass(frozen=True)
class Settings:
    """One run, completely."""

    part: str
    model: FiveBlockSettings | BackboneSettings
    train: TrainSettings
    data: DataSettings = DataSettings()
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
    run: RunSettings = dataclasses.field(default_factory=RunSettings)
    tracker: TrackerSettings = dataclasses.field(default_factory=TrackerSettings)

    def __post_init__(self) -> None:
        size, start = self.data.image_size, self.train.start_size
        if start is not None and start > size:
            raise UsageError(f"--start-size is {start}: it must be at most --image-size, {size}.")
        for flag, other in (("--test-size", self.data.test_size), ("--start-size", start)):
            if other not in (None, size) and (fixed := self.model.takes_one_size):
                raise UsageError(f"{flag} is {other}, but with {fixed} the network takes only --image-size, {size}.")

    def sections(self) -> dict[str, Any]:
        """Section by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "part"}

    def by_key(self) -> dict[str, Any]:
        """The value of every setting by "section.field"."""
        return {f"{name}.{field}": value for name, field, _, value in self._values()}

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section and field, without the secrets of URIs."""
        plain: dict[str, dict[str, Any]] = {name: {} for name in self.sections()}
        for name, field, each, value in self._values():
            plain[name][field] = public_uri(value) if each.uri and value else value
        return plain

    def anchored(self) -> "Settings":
        """The same settings, with local data named by an absolute path."""
        each, data = options_of(DataSettings)["uri"][0], self.data
        if "://" not in data.labels and data.labels != FOLDERS:
            data = dataclasses.replace(data, labels=absolute(data.labels))
        if "://" not in data.uri and not re.fullmatch(each.names, data.uri):
            data = dataclasses.replace(data, uri=absolute(data.uri))
        return dataclasses.replace(self, data=data)

    def fingerprint(self) -> str:
        """SHA-256 over what decides the result: data, model, recipe and seed."""
        deciding: dict[str, Any] = {"part": self.part}
        for name, field, each, value in self._values():
            if each.in_fingerprint and value not in each.off:
                deciding[f"{name}.{field}"] = fingerprint_value(each, value)
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def _values(self) -> Iterator[tuple[str, str, Option, Any]]:
        """Section, field, option and value of every setting."""
        for name, section in self.sections().items():
            for field, (each, _) in options_of(type(section)).items():
                yield name, field, each, getattr(section, field)

    @property
    def run_id(self) -> str:
        """The given run id, or the one that follows from the settings."""
        return self.run.run_id or f"part{self.part}-{self.fingerprint()[:12]}"
