"""The first layer of every network is torchvision's normalisation, without a copy in between."""

import torch
from torchvision.transforms.v2.functional import normalize, to_dtype

from inat_job.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def _pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_preprocess_equals_torchvisions_normalisation():
    expected = normalize(to_dtype(_pixels(), torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(Preprocess()(_pixels()), expected, atol=2e-6, rtol=1e-5)


def test_float_pixels_give_the_same_as_uint8():
    assert torch.equal(Preprocess()(_pixels().float()), Preprocess()(_pixels()))


def test_preprocess_keeps_the_memory_format():
    normalised = Preprocess()(_pixels().contiguous(memory_format=torch.channels_last))
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normalised, Preprocess()(_pixels()))


def test_statistics_are_saved_in_the_state_dict():
    half = Preprocess()
    half.normalise_by((0.5,) * 3, (0.5,) * 3)
    restored = Preprocess()
    restored.load_state_dict(half.state_dict())
    assert restored(torch.tensor([0.0, 255.0]).expand(1, 3, 1, 2)).flatten(0, 2).tolist() == [[-1.0, 1.0]] * 3
