"""Cached features are reused only for the views that this code cuts: a change of the views must raise VIEW_FORMAT."""

import pytest
import torch
from torch import Tensor

from inat_job.data import augment, rng
from inat_job.data.augment import Augmentation, centre_maps, colour_factors, cut_views, random_maps

VIEWS = {
    1: {
        "random": (
            "141.4 150.4 57.0 67.6 97.7 148.4 104.2 128.5 77.4 93.6 49.7 107.7 "
            "76.5 129.3 107.9 77.2 21.7 143.0 38.1 129.9 82.9 75.8 66.6 67.0"
        ),
        "centre": (
            "201.5 163.7 77.1 102.7 177.9 82.1 151.3 105.4 114.6 97.9 85.2 28.2 "
            "142.7 134.6 107.3 117.4 220.2 68.0 190.1 87.4 159.4 49.7 167.9 28.6"
        ),
    },
}
"""By VIEW_FORMAT: pixels of the views of `fixed_images`. Never change an entry: raise VIEW_FORMAT and add one."""

VIEWS[2] = VIEWS[1]
VIEWS[3] = VIEWS[2]  # cut from larger squares


def fixed_images() -> tuple[Tensor, Tensor]:
    """Two squares of 24 pixels, smooth and without symmetry, and their original sizes."""
    x, y = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="xy")
    channels = [127 + 100 * torch.sin(0.2 * x + shift) * torch.cos(0.13 * y - shift) for shift in range(6)]
    pixels = torch.stack(channels).reshape(2, 3, 24, 24).round().to(torch.uint8)
    return pixels, torch.tensor([[40.0, 20.0], [20.0, 50.0]])


def views() -> dict[str, Tensor]:
    pixels, sizes = fixed_images()
    draws = torch.from_numpy(rng.augmentation(seed=5, view=3, rows=2))
    augmentation = Augmentation(crop_scale=0.35, rotation=20.0, colour=0.3)
    random = random_maps(sizes, draws, augmentation), colour_factors(draws, augmentation)
    centre = centre_maps(sizes, 0.875), None
    return {"random": cut_views(pixels, *random, 16), "centre": cut_views(pixels, *centre, 16)}


@pytest.mark.parametrize("name", ["random", "centre"])
def test_views_of_a_fixed_image_are_those_of_view_format(name: str) -> None:
    expected = VIEWS.get(augment.VIEW_FORMAT)
    assert expected, f"VIEW_FORMAT is {augment.VIEW_FORMAT}: add the pixels of its views here"
    pixels = views()[name][:, :, 3::8, 2::8].flatten()
    assert pixels.tolist() == pytest.approx([float(text) for text in expected[name].split()], abs=0.1), (
        "the views changed: raise augment.VIEW_FORMAT"
    )
