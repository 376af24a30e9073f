"""The probe: a head that is solved for on the frozen network's features before the first step.

It is a multinomial logistic regression with an L2 penalty, whose strength the validation images decide. `lp-ft` begins
with it: with a random head, the first steps distort the pretrained features (Kumar et al., Fine-tuning can distort
pretrained features, 2022, https://arxiv.org/abs/2202.10054).
"""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inat_job import events, signals
from inat_job.checkpoints import training_state
from inat_job.data.features import FeatureFile
from inat_job.errors import BadDataError, ConflictError
from inat_job.models.classifier import Classifier
from inat_job.models.frozen_stem import CannotCutError
from inat_job.models.strategies import AFTER_PROBE, Architecture
from inat_job.training import feature_cache
from inat_job.training.context import RunContext

PENALTIES = tuple(10 ** (-exponent / 2) for exponent in range(9))
"""The strengths of the penalty, from 1 to 0.0001, for features of variance 1."""

_ITERATIONS = 300
_TOLERANCE = 1e-6
"""The largest entry of the gradient at which the minimum counts as found."""

_SMALLEST_SCALE = 1e-6
_ROWS = 4096
"""Images whose features pass through the rest of the network at a time."""


class Probe(NamedTuple):
    """A dense layer's weight (classes, D) and bias (classes,), and what it reaches on the validation images."""

    weight: Tensor
    bias: Tensor
    penalty: float
    val_accuracy: float
    val_loss: float


def solve(features: Tensor, labels: Tensor, val_features: Tensor, val_labels: Tensor, classes: int) -> Iterator[Probe]:
    """The probes of all `PENALTIES`, from the strongest; each starts from the one before.

    `features` is float32 (N, D), `labels` int64 (N,). L-BFGS minimises the mean cross-entropy plus half the penalty
    times the squared norm of the weights, in float64, of features brought to mean 0 and variance 1; the layers, also
    float64, take features as they are. Nothing is drawn: equal arguments give equal bits on equal processors with
    equally many threads.
    """
    features, val_features = features.double(), val_features.double()
    mean, scale = features.mean(0), features.std(0, correction=0).clamp_min(_SMALLEST_SCALE)
    normalised = (features - mean) / scale
    weight, bias = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
    for penalty in PENALTIES:
        weight, bias = _minimise(normalised, labels, penalty, weight, bias)
        layer = weight / scale, bias - (weight / scale) @ mean
        logits = F.linear(val_features, *layer)
        accuracy = (logits.argmax(dim=1) == val_labels).double().mean().item()
        yield Probe(*layer, penalty, accuracy, F.cross_entropy(logits, val_labels).item())


def _minimise(features: Tensor, labels: Tensor, penalty: float, *start: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = (each.clone().requires_grad_() for each in start)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_ITERATIONS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=_TOLERANCE**2,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def set_head(context: RunContext, architecture: Architecture, classifier: Classifier) -> bool:
    """Set the head of a strategy that begins with a probe; returns whether it was set.

    Rank 0 solves for it, and all ranks make this call. It is left as it is with `--init-from`, which brings a trained
    one. Raises ConflictError for a network whose features cannot be had.
    """
    if architecture.strategy not in AFTER_PROBE or context.settings.run.init_from:
        return False
    try:
        classifier.stem_and_tail(0)
    except CannotCutError as reason:
        raise ConflictError(
            f"--strategy {architecture.strategy} begins with features of the frozen network, and those of "
            f"{architecture.name} cannot be had ({reason}): use --strategy full."
        ) from None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "head" if context.group.is_main else None
        if path:
            probe = _best(context, architecture, classifier)
            training_state.write({"state_dict": {"weight": probe.weight, "bias": probe.bias}}, path)
        _head(architecture).load_state_dict(training_state.read(context.group.broadcast_file(path))["state_dict"])
    return True


def _best(context: RunContext, architecture: Architecture, classifier: Classifier) -> Probe:
    """The probe with the best validation accuracy; of equal ones, the one with the lowest loss."""
    head = _head(architecture)
    views = architecture.feature_views if context.settings.train.augment else 0
    features, _ = feature_cache.compute(context, classifier, views, n_trainable_stages=0, with_plain=True)
    events.phase("probe")
    began, tail = time.perf_counter(), classifier.stem_and_tail(0).tail
    assert features.plain
    parts = [features.plain, *features.views.values()]
    train = torch.cat([_inputs(tail, head, each) for each in parts])
    labels = torch.cat([features.labels_of(each) for each in parts])
    # With --final, the penalty is still chosen as an ordinary run does, and then holds for all images.
    held_out = torch.from_numpy(np.isin(np.concatenate([each.rows for each in parts]), context.images.held_out_rows))
    if features.val:
        val, val_labels = _inputs(tail, head, features.val), features.labels_of(features.val)
    else:
        plain = held_out.clone()
        plain[len(features.plain.rows) :] = False
        val, val_labels = train[plain], labels[plain]
    if not len(val_labels):
        raise BadDataError(
            f"--strategy {architecture.strategy} chooses its head on images that did not solve it, and no class has "
            "two different training images: add some, or use --strategy full."
        )
    found = []
    for probe in solve(train[~held_out], labels[~held_out], val, val_labels, head.out_features):
        signals.check(context.stop, "solving for the head")
        found.append(probe)
    best = max(found, key=lambda each: (each.val_accuracy, -each.val_loss))
    if held_out.any():
        of_all = solve(train, labels, val, val_labels, head.out_features)
        best = next(each for each in of_all if each.penalty == best.penalty)
    seconds = round(time.perf_counter() - began, 3)
    events.emit("probe", penalty=best.penalty, val_accuracy=best.val_accuracy, rows=len(train), seconds=seconds)
    return best


def _head(architecture: Architecture) -> nn.Linear:
    (name,) = architecture.head
    head = architecture.network.get_submodule(name)
    assert isinstance(head, nn.Linear)
    return head


def _inputs(tail: nn.Module, head: nn.Linear, file: FeatureFile) -> Tensor:
    """What the head receives in evaluation when the tail is given these features: float32 (n, D), on the CPU."""
    assert file.features is not None
    rows = file.features.in_order(torch.arange(len(file.rows)))
    received: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: received.append(given[0].float().cpu()))
    try:
        with torch.no_grad():
            for start in range(0, len(file.rows), _ROWS):
                tail.eval()(rows(slice(start, start + _ROWS)).to(head.weight))
    finally:
        hook.remove()
    return torch.cat(received)
