"""Fine-tuning strategies: which stages train at an epoch, which are frozen, and the optimiser's parameter groups."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

AFTER_PROBE = ("lp-ft",)
"""The strategies that begin with a head that was solved for, and not drawn: training/linear_probe.py."""

_RATE_AFTER_PROBE = 0.1
"""Their learning rate over that of a strategy whose head is drawn: a larger one would undo the solution."""


@dataclass(frozen=True)
class Architecture:
    """A network divided into stages for fine-tuning; the same for both parts.

    `stages` go from the stem to the last one, each a tuple of prefixes of parameter names; with `head` they cover every
    parameter once. `blueprint` holds the plain values that `export.load_exported` rebuilds the network from. `strategy`
    is head, last-k, gradual, full or lp-ft; `layer_decay` is the learning rate of a stage over that of the next one.
    `feature_views` is the number of augmented views of which the frozen stages' output is cached, 0 for none. With
    `freeze_batch_norm` the statistics and parameters of batch norms in the stages never change, except where pretrained
    weights lacked them: `lacking` names what they left as it was drawn.
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
    freeze_batch_norm: bool = False
    lacking: tuple[str, ...] = ()

    def trained_bytes(self) -> int:
        """Bytes of the parameters that are trained at some time of the run."""
        groups = parameter_groups(self, lr=1.0, weight_decay=0.0)
        return sum(parameter.nbytes for group in groups for parameter in group["params"])


def trainable_stage_count(strategy: str, n_stages: int, last_k: int, epoch: int, epochs: int) -> int:
    """How many of the last stages train beside the head in an epoch (0..epochs - 1): 0..n_stages, never fewer later.

    gradual starts with the head alone, unfreezes one stage after the other from the last, evenly over the first half
    of the run, and then trains all of them (gradual unfreezing: Howard and Ruder, ULMFiT, 2018). lp-ft trains all of
    them after the probe (Kumar et al., Fine-tuning can distort pretrained features, 2022).
    """
    if strategy == "head":
        return 0
    if strategy == "last-k":
        return min(last_k, n_stages)
    if strategy == "gradual":
        return min(n_stages, 2 * n_stages * epoch // epochs)
    assert strategy in ("full", "lp-ft"), strategy
    return n_stages


def trainable_stages(architecture: Architecture, epoch: int, epochs: int) -> int:
    """`trainable_stage_count` of an architecture."""
    return trainable_stage_count(architecture.strategy, len(architecture.stages), architecture.last_k, epoch, epochs)


def epochs_with_initial_stages(architecture: Architecture, epochs: int) -> int:
    """How many epochs train the same stages as the first one."""
    n_stages = len(architecture.stages)
    return -(-epochs // (2 * n_stages)) if architecture.strategy == "gradual" and n_stages else epochs


def apply_strategy(architecture: Architecture, n_trainable_stages: int) -> None:
    """Let the head and the last `n_trainable_stages` stages train, and freeze the others.

    Frozen modules are set to eval mode, since even without gradients their batch norm would move and their dropout add
    noise. The others are set to training mode. Modes and gradients set before do not matter.
    """
    network, stages = architecture.network, architecture.stages
    frozen = [prefix for stage in stages[: len(stages) - n_trainable_stages] for prefix in stage]
    frozen += _frozen_norms(architecture)
    network.train()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not has_prefix(name, frozen))
    for name, module in network.named_modules():
        if has_prefix(name, frozen):
            module.training = False


def parameter_groups(architecture: Architecture, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """The optimiser's parameter groups for the whole run, the head's first; each parameter that is ever trained is in
    exactly one.

    They never change, so that a resumed optimiser fits. No two have the same rates, since each group costs a call per
    step. Biases and parameters of norms (one dimension or none) have no weight decay. With gradual, full and lp-ft a
    stage's rate is lr * layer_decay**(distance from the head) (discriminative fine-tuning: Howard and Ruder, ULMFiT,
    2018); head and last-k train at one rate. After a probe, all rates are a tenth.
    """
    lr *= _RATE_AFTER_PROBE if architecture.strategy in AFTER_PROBE else 1.0
    most = trainable_stages(architecture, epoch=1, epochs=1)  # at the end of the run, when most stages train
    decay = architecture.layer_decay if architecture.strategy in ("gradual", "full", "lp-ft") else 1.0
    from_head = (architecture.head, *reversed(architecture.stages))
    norms = _frozen_norms(architecture)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for distance, prefixes in enumerate(from_head[: most + 1]):
        for name, each in architecture.network.named_parameters():
            if has_prefix(name, prefixes) and not has_prefix(name, norms):
                rates = (lr * decay**distance, weight_decay if each.ndim > 1 else 0.0)
                groups.setdefault(rates, []).append(each)
    return [{"params": each, "lr": rate, "weight_decay": decayed} for (rate, decayed), each in groups.items()]


def _frozen_norms(architecture: Architecture) -> list[str]:
    if not architecture.freeze_batch_norm:
        return []
    norms = [name for name, each in architecture.network.named_modules() if isinstance(each, _BatchNorm)]
    lacking = {name.rpartition(".")[0] for name in architecture.lacking}
    return [name for name in norms if name not in lacking and not has_prefix(name, architecture.head)]


def has_prefix(name: str, prefixes: Iterable[str]) -> bool:
    """Whether a parameter or module is one of `prefixes` or is inside one; the empty prefix is the whole network."""
    return any(prefix in ("", name) or name.startswith(prefix + ".") for prefix in prefixes)
