"""The probe's solution: where the gradient vanishes, the same each time."""

import pytest
import torch
from torch.nn import functional as F

from inat_job.training.linear_probe import PENALTIES, Probe, solve


def data(n: int, seed: int, dimensions: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes around their own centres; the features differ in scale a thousandfold."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, dimensions, generator=torch.Generator().manual_seed(9))
    features = centres[labels] + torch.randn(n, dimensions, generator=generator)
    return features * torch.logspace(-1, 2, dimensions) + 5, labels


def probes(seed: int = 0) -> list[Probe]:
    return list(solve(*data(300, seed), *data(150, seed + 1), classes=3))


def test_solution_is_where_the_gradient_vanishes() -> None:
    features, labels = data(300, 0)
    mean, scale = features.double().mean(0), features.double().std(0, correction=0)
    for each in probes():
        weight = (each.weight * scale).requires_grad_()
        bias = (each.bias + each.weight @ mean).requires_grad_()
        loss = F.cross_entropy(F.linear((features.double() - mean) / scale, weight, bias), labels)
        (loss + each.penalty / 2 * weight.square().sum()).backward()
        assert weight.grad is not None
        assert weight.grad.abs().max() < 2e-6


def test_smaller_penalties_allow_larger_weights() -> None:
    found = probes()
    assert tuple(each.penalty for each in found) == PENALTIES == tuple(sorted(PENALTIES, reverse=True))
    scale = data(300, 0)[0].std(0, correction=0)
    norms = [float((each.weight * scale).norm()) for each in found]
    assert norms == sorted(norms)


def test_accuracy_is_that_of_the_validation_images() -> None:
    features, labels = data(150, 1)
    for each in probes():
        logits = F.linear(features.double(), each.weight, each.bias)
        assert each.val_accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
        assert each.val_loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert max(each.val_accuracy for each in probes()) > 0.6


def test_same_features_give_the_same_bits() -> None:
    assert all(
        torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)
        for one, other in zip(probes(), probes(), strict=True)
    )


def test_constant_features_do_no_harm() -> None:
    features, labels = data(60, 0)
    features[:, 0] = 3.0
    for each in solve(features, labels, features, labels, classes=3):
        assert torch.isfinite(each.weight).all()
        assert torch.isfinite(each.bias).all()
