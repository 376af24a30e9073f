"""What learns, when and how fast: the stages that are open at an epoch, frozen modules, and the optimiser's groups."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Architecture:
    """A network, cut for fine-tuning: the same for both parts.

    `stages` go from stem to last, each a tuple of prefixes of parameter names; with `head` they cover every parameter
    once. `blueprint` holds the plain values that `export.load_exported` rebuilds the network from. `strategy` is one of
    head, last-k, gradual, full; `layer_decay` is a stage's learning rate over that of the next. `feature_views` is in
    how many views the frozen part's output is reused, 0 for none.
    """

    name: str
    network: nn.Module
    stages: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]
    blueprint: dict[str, Any] = field(default_factory=dict)
    strategy: str = "full"
    last_k: int = 1
    layer_decay: float = 1.0
    feature_views: int = 0

    def trained_bytes(self) -> int:
        """The size of the parameters that the run trains at some time."""
        groups = parameter_groups(self, lr=1.0, weight_decay=0.0)
        return sum(parameter.nbytes for group in groups for parameter in group["params"])


def trainable_stage_count(strategy: str, n_stages: int, last_k: int, epoch: int, epochs: int) -> int:
    """How many of the last stages train beside the head at an epoch (from 0) of `epochs`: 0..n_stages, never falling.

    gradual begins with the head alone, opens stage after stage from the last, evenly over the first half of the run,
    and then trains all of them (gradual unfreezing: Howard and Ruder, ULMFiT, 2018).
    """
    if strategy == "head":
        return 0
    if strategy == "last-k":
        return min(last_k, n_stages)
    if strategy == "gradual":
        return min(n_stages, 2 * n_stages * epoch // epochs)
    assert strategy == "full", strategy
    return n_stages


def trainable_stages(architecture: Architecture, epoch: int, epochs: int) -> int:
    """`open_stages` of an architecture."""
    return trainable_stage_count(architecture.strategy, len(architecture.stages), architecture.last_k, epoch, epochs)


def epochs_with_initial_stages(architecture: Architecture, epochs: int) -> int:
    """How many epochs, from the first one, train the same stages."""
    first = trainable_stages(architecture, 0, epochs)
    return sum(trainable_stages(architecture, epoch, epochs) == first for epoch in range(epochs))


def apply_strategy(architecture: Architecture, n_trainable_stages: int) -> None:
    """Let the head and the last `n_trainable_stages` stages train, and nothing else.

    A frozen module goes into eval mode as a whole: its batch norm would move, and its dropout add noise, without
    gradients too. The rest goes into training mode, whatever the modes were before.
    """
    network, stages = architecture.network, architecture.stages
    frozen = [prefix for stage in stages[: len(stages) - n_trainable_stages] for prefix in stage]
    network.train()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not has_prefix(name, frozen))
    for name, module in network.named_modules():
        if has_prefix(name, frozen):
            module.training = False


def parameter_groups(architecture: Architecture, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """The optimiser's groups for the whole run: each parameter that may ever train is in exactly one, the head's first.

    They never change, so that a resumed optimiser fits, and no two have the same rates, since each costs a call a step.
    Biases and the parameters of norms (one dimension or none) have no weight decay. For gradual and full a stage's
    rate is lr * layer_decay**(distance from the head) (discriminative fine-tuning: Howard and Ruder, ULMFiT, 2018);
    head and last-k train at one rate.
    """
    reach = trainable_stages(architecture, epoch=1, epochs=1)  # the end of the run, where most is open
    decay = architecture.layer_decay if architecture.strategy in ("gradual", "full") else 1.0
    parts = (architecture.head, *reversed(architecture.stages))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for distance, prefixes in enumerate(parts[: reach + 1]):
        for name, each in architecture.network.named_parameters():
            if has_prefix(name, prefixes):
                kind = (lr * decay**distance, weight_decay if each.ndim > 1 else 0.0)
                groups.setdefault(kind, []).append(each)
    return [{"params": each, "lr": rate, "weight_decay": decayed} for (rate, decayed), each in groups.items()]


def has_prefix(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a parameter or module is one of `prefixes` or lies within one; the empty prefix is the network."""
    return any(prefix in ("", name) or name.startswith(prefix + ".") for prefix in prefixes)
