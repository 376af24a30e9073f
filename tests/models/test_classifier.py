"""The LightningModule that both parts train: the loss of mixed images."""

import pytest
import torch
from torch.nn import functional as F

from inat_job.data.batches import Batch
from inat_job.data.mixing import Mix
from inat_job.models.classifier import Classifier
from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.settings import TrainSettings


@pytest.mark.parametrize("is_cutmix", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_mixed_images_is_that_of_their_mixed_labels(is_cutmix: bool, smoothing: float) -> None:
    spec = FiveBlockSpec((2,) * 5, (3,) * 5, "relu", 4, "gap", True, 0.0, 32, 3)
    module = Classifier(build_five_block(spec), TrainSettings(label_smoothing=smoothing), 10).eval()
    pixels, maps = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8), torch.eye(2, 3).repeat(4, 1, 1)
    batch = Batch(pixels, torch.tensor([0, 1, 1, 2]), maps, None, None, 32, Mix(is_cutmix, 0.7, 0.4, 0.6))
    own = batch.mix.own_share(32)  # type: ignore[union-attr]
    one_hot = F.one_hot(batch.labels, 3).float()
    targets = own * one_hot + (1 - own) * one_hot[[1, 0, 3, 2]]
    expected = F.cross_entropy(module(batch), targets, label_smoothing=smoothing)
    assert module.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)
