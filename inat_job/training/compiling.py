"""Whether the network is compiled, and how: a policy on what it saves in the run's length and what it costs.

Only the step of training is: evaluation is a small part of a run and would be compiled again, for each size of batch.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from inat_job.data.module import ImageDataModule
from inat_job.models.flops import MACS_PER_S, network_size
from inat_job.models.strategies import Architecture, trainable_stages
from inat_job.settings import Settings

_LAYER_S = {"cpu": 1e-4, "mps": 1e-4, "cuda": 4e-5}
"""What a layer's calls take at least in a step, however small it is."""

_SAVED = {"cuda": 0.2}
"""Share of a step that compiling saves, where it saves any: on CPUs it was measured and saves less than it costs."""

_FIXED_S, _SECONDS_PER_LAYER = 30.0, 0.6
"""What compiling a step costs."""

_MARGIN = 2.0
"""How many times its cost it must save, since both are estimates."""

_FEW_LAYERS = 64
"""Of so few layers, a GPU waits for their calls: a CUDA graph makes one call of them."""

_MOST_WAYS = 64
"""Sets of open stages for which the step is compiled; torch stops at eight by itself."""


@dataclass(frozen=True)
class Load:
    """A run's training on the whole network: what is computed, how often, and in how many different ways.

    `macs` are one image's, `ways` the sets of stages that are open by turns, each of which is compiled by itself.
    """

    macs: int
    layers: int
    batch_size: int
    accumulate: int
    steps: int
    ways: int = 1
    most_s: float | None = None

    def seconds(self, accelerator: str) -> float:
        """Roughly what the training takes uncompiled."""
        arithmetic = 3 * self.macs * self.batch_size / MACS_PER_S[accelerator]  # the backward pass takes two more
        total = self.steps * max(arithmetic, self.layers * self.accumulate * _LAYER_S[accelerator])
        return min(total, self.most_s or total)


@dataclass(frozen=True)
class Decision:
    """The mode of torch.compile, None for as it is, and why."""

    mode: str | None
    reason: str


def has_compiler() -> bool:
    """Whether PATH has what torch.compile calls."""
    return any(map(shutil.which, ("cc", "gcc", "clang")))


def decide(asked: bool | None, compiler: bool, accelerator: str, load_of: Callable[[], Load]) -> Decision:
    """What is asked for where it can be done; with nothing asked, what pays for itself.

    The load is asked for where it matters: to count a network's arithmetic takes a tenth of a second of the start.
    """
    if asked is False:
        return Decision(None, "--no-compile")
    if not compiler:
        return Decision(None, "it needs a C compiler, and there is none on PATH")
    if accelerator not in _SAVED:
        return Decision("default", "--compile") if asked else Decision(None, f"on {accelerator} it saves too little")
    load = load_of()
    mode = _mode(load)
    if asked:
        return Decision(mode, "--compile")
    saved = _SAVED[accelerator] * load.seconds(accelerator)
    cost = load.ways * (_FIXED_S + _SECONDS_PER_LAYER * load.layers)
    pays = saved >= _MARGIN * cost
    return Decision(mode if pays else None, f"it would save about {saved:.0f} s and take {cost:.0f} s")


def measure(architecture: Architecture, settings: Settings, images: ImageDataModule, reused: int) -> Load:
    """The training of a run whose first `reused` epochs don't need the whole network."""
    train, network = settings.train, architecture.network
    epochs = range(min(reused, train.epochs), train.epochs)
    return Load(
        macs=network_size(network, settings.data.image_size).macs,
        layers=sum(1 for module in network.modules() if not list(module.children())),
        batch_size=train.batch_size,
        accumulate=train.accumulate,
        steps=len(epochs) * images.steps_per_epoch,
        ways=max(1, len({trainable_stages(architecture, epoch, train.epochs) for epoch in epochs})),
        most_s=train.max_time,
    )


def compile_in_place(network: nn.Module, mode: str) -> None:
    """Compile `network` at its first step. What the compiler fails at runs as it is, and torch's log says so."""
    import torch._dynamo  # which takes a second

    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = _MOST_WAYS
    network.compile(mode=mode)  # in place: torch.compile() would rename the weights


def _mode(load: Load) -> str:
    """A CUDA graph overwrites what its last call gave, and so takes no gradients that are added up over calls."""
    return "reduce-overhead" if load.layers <= _FEW_LAYERS and load.accumulate == 1 else "default"
