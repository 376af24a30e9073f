"""The training loss of the LightningModule."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from inat_job.models.classifier import Classifier
from inat_job.models.strategies import Architecture
from inat_job.settings import DataSettings, TrainSettings

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [0.0, 0.0, 3.0], [1.0, -1.0, 0.5]])
LABELS = torch.tensor([0, 1, 1, 2])


def classifier(smoothing: float = 0.1, weights: list[float] | None = None) -> Classifier:
    architecture = Architecture("x", nn.Linear(2, 3), (), ("",))
    train = TrainSettings(label_smoothing=smoothing)
    return Classifier(architecture, train, DataSettings(), 5, None if weights is None else np.array(weights))


def test_loss_without_weights_is_torchs() -> None:
    assert torch.equal(
        classifier()._training_loss(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_multiply_the_loss_of_each_image(smoothing: float) -> None:
    loss = classifier(smoothing, [0.5, 2.0, 1.0])._training_loss
    each = F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, reduction="none")
    assert float(loss(LOGITS, LABELS)) == pytest.approx(float((each * torch.tensor([0.5, 2.0, 2.0, 1.0])).sum() / 4))
    halves = (loss(LOGITS[:2], LABELS[:2]) + loss(LOGITS[2:], LABELS[2:])) / 2
    assert float(halves) == pytest.approx(float(loss(LOGITS, LABELS)))  # as two ranks or two slices have it
    assert float(classifier(smoothing, [1.0] * 3)._training_loss(LOGITS, LABELS)) == pytest.approx(float(each.mean()))


def test_weights_are_no_part_of_a_checkpoint() -> None:
    assert classifier(weights=[1.0, 2.0, 3.0]).state_dict().keys() == classifier().state_dict().keys()
