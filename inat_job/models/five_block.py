"""Part A's network: five blocks of convolution, max-pooling and activation, one dense layer and an output layer."""

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from inat_job.errors import UsageError
from inat_job.models.preprocess import Preprocess
from inat_job.models.strategies import Architecture
from inat_job.settings import BLOCKS

KIND = "five_block"
MIN_IMAGE_SIZE = 2**BLOCKS  # every block halves the side, and one pixel must remain
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish}


@dataclass(frozen=True)
class FiveBlockSpec:
    """Everything that decides the shape of the network. Raises UsageError for values that make no network.

    `filters` and `kernel_sizes` have a value for each block, `dense` is the width of the dense layer, and `pooling`
    (flatten or gap, global average) is what comes before it.
    """

    filters: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    activation: str
    dense: int
    pooling: str
    batch_norm: bool
    dropout: float
    image_size: int
    num_classes: int

    def __post_init__(self) -> None:
        for flag, values in (("--filters", self.filters), ("--kernel-sizes", self.kernel_sizes)):
            if len(values) != BLOCKS or min(values) < 1:
                given = ",".join(map(str, values))
                raise UsageError(f"{flag} is {given}: give {BLOCKS} whole numbers of at least 1, one for each block.")
        if self.image_size < MIN_IMAGE_SIZE:
            raise UsageError(
                f"--image-size is {self.image_size}: {BLOCKS} blocks each halve it, so give {MIN_IMAGE_SIZE} or more."
            )
        _check_choice("--activation", self.activation, tuple(ACTIVATIONS))
        _check_choice("--pooling", self.pooling, ("flatten", "gap"))

    @property
    def features(self) -> int:
        """Number of inputs of the dense layer."""
        side = self.image_size // MIN_IMAGE_SIZE if self.pooling == "flatten" else 1
        return self.filters[-1] * side**2


def block_filters(base: int, organisation: Literal["same", "double", "half"] | str) -> tuple[int, ...]:
    """The filters of the five blocks, at least 1 each, from those of the first. Raises UsageError."""
    _check_choice("--filter-organisation", organisation, ("same", "double", "half"))
    factor = {"same": 1.0, "double": 2.0, "half": 0.5}[organisation]
    return tuple(max(1, int(base * factor**block)) for block in range(BLOCKS))


class FiveBlockNet(nn.Module):
    """Pixels (B, 3, S, S), uint8 or float in 0..255, S = `spec.image_size`, to logits (B, `spec.num_classes`)."""

    def __init__(self, spec: FiveBlockSpec) -> None:
        super().__init__()
        channels = (3, *spec.filters)
        self.preprocess = Preprocess()
        self.blocks = nn.Sequential(
            *(_block(*each, spec) for each in zip(channels[:-1], spec.filters, spec.kernel_sizes, strict=True))
        )
        self.pooling = nn.Flatten() if spec.pooling == "flatten" else _global_average()
        self.dense = nn.Linear(spec.features, spec.dense)
        self.activation = ACTIVATIONS[spec.activation]()
        self.dropout = nn.Dropout(spec.dropout)
        self.output = nn.Linear(spec.dense, spec.num_classes)
        self.apply(_initialise)
        # Without batch norm, max-pooling raises the scale from block to block; with small output weights the first loss
        # is still that of a guess.
        nn.init.normal_(self.output.weight, std=0.01)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.blocks(self.preprocess(pixels))
        hidden = self.activation(self.dense(self.pooling(maps)))
        logits: Tensor = self.output(self.dropout(hidden))
        return logits


def build_five_block(spec: FiveBlockSpec) -> Architecture:
    """The network with fresh weights from torch's generator; each block is a stage, and all train at one rate."""
    return Architecture(
        name=KIND,
        network=FiveBlockNet(spec),
        stages=tuple((f"blocks.{block}",) for block in range(BLOCKS)),
        head=("dense", "output"),
        blueprint={"kind": KIND, **dataclasses.asdict(spec)},
    )


def spec_from_blueprint(blueprint: dict[str, Any]) -> FiveBlockSpec:
    """The spec of a blueprint, which may come from JSON. Raises TypeError for other fields."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in blueprint.items()
    }
    del fields["kind"]
    return FiveBlockSpec(**fields)


def _block(inputs: int, filters: int, kernel: int, spec: FiveBlockSpec) -> nn.Sequential:
    """A block, which pools right behind its convolution, so that batch norm and activation have a quarter of the work.

    An activation that never falls, such as ReLU, gives the same before and after max-pooling; the statistics of batch
    norm are those of the pooled values. (Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, 2024, arXiv
    2404.00498)
    """
    before, after = (kernel - 1) // 2, kernel // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if before != after:  # an even kernel; torch's padding="same" would also copy, and warns
        layers["pad"] = nn.ZeroPad2d((before, after, before, after))
    padding = before if before == after else 0
    # Batch norm has its own bias and would cancel the convolution's.
    layers["conv"] = nn.Conv2d(inputs, filters, kernel, padding=padding, bias=not spec.batch_norm)
    layers["pool"] = nn.MaxPool2d(2)
    if spec.batch_norm:
        layers["batch_norm"] = nn.BatchNorm2d(filters)
    layers["activation"] = ACTIVATIONS[spec.activation]()  # not in place, since guided backpropagation hooks its output
    return nn.Sequential(layers)


def _global_average() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _initialise(module: nn.Module) -> None:
    """He initialisation, which keeps the scale of the activations (He et al., Delving Deep into Rectifiers, 2015)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{flag} is {value!r}: give one of {', '.join(choices)}.")
