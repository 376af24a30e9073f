"""Augmentation: views have the geometry of the original image, because sampling undoes the squash."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms import v2

from inat_job.data import rng
from inat_job.data.augment import (
    _OPERATIONS,
    RATIO,
    Augmentation,
    _random_box,
    centre_maps,
    colour_factors,
    composed,
    cut_views,
    erased_boxes,
    mirrored,
    operations,
    random_maps,
    training_views,
    view_size,
)
from inat_job.data.rng import COLUMNS

IDENTITY = Augmentation(crop_scale=1.0, rotation=0.0, colour=0.0)


def squashed(image: Image.Image, side: int) -> tuple[Tensor, Tensor]:
    square = np.array(image.resize((side, side), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(square).permute(2, 0, 1).unsqueeze(0)
    return pixels, torch.tensor([image.size], dtype=torch.float32)


def draws(**columns: float) -> Tensor:
    """Draws that change nothing except in the given columns: the middle of each range, and no flip."""
    values = dict.fromkeys(COLUMNS, 0.5) | {"flip": 0.9, "area": 1.0} | columns
    return torch.tensor([[values[name] for name in COLUMNS]])


def centre_view(pixels: Tensor, sizes: Tensor, size: int, crop: float) -> Tensor:
    return cut_views(pixels, centre_maps(sizes, crop), None, size)


def random_view(pixels: Tensor, sizes: Tensor, draws: Tensor, size: int, augmentation: Augmentation) -> Tensor:
    maps, colour = random_maps(sizes, draws, augmentation), colour_factors(draws, augmentation)
    return cut_views(pixels, maps, colour, size)


def disc(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height))
    radius = min(width, height) // 4
    box = (width // 2 - radius, height // 2 - radius, width // 2 + radius, height // 2 + radius)
    ImageDraw.Draw(image).ellipse(box, fill="white")
    return image


def extents(view: Tensor) -> tuple[int, int]:
    bright = view[0, 0] > 127
    return int(bright.any(dim=0).sum()), int(bright.any(dim=1).sum())


@pytest.mark.parametrize("size", [(400, 200), (200, 400), (300, 300)])
def test_views_restore_aspect(size: tuple[int, int]) -> None:
    pixels, sizes = squashed(disc(*size), 256)
    views = [
        centre_view(pixels, sizes, 128, 1.0),
        random_view(pixels, sizes, draws(area=0.0), 128, Augmentation(0.3, 0, 0)),
    ]
    for view in views:
        width, height = extents(view)
        assert abs(width - height) <= 3


@pytest.mark.parametrize("size", [(400, 200), (200, 400), (256, 256)])
def test_centre_view_matches_torchvision(size: tuple[int, int]) -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    pixels, sizes = squashed(image, 256)
    ours = centre_view(pixels, sizes, 112, 0.875)
    reference = v2.functional.center_crop(v2.functional.resize(v2.functional.pil_to_tensor(image), 128), 112)
    assert (ours[0] - reference).abs().mean() < 3
    assert ours.dtype == torch.float32


def test_identity_view_is_unchanged() -> None:
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    sizes = torch.tensor([[32.0, 32.0]])
    assert torch.allclose(centre_view(pixels, sizes, 32, 1.0), pixels.float(), atol=1e-2)
    assert torch.allclose(random_view(pixels, sizes, draws(), 32, IDENTITY), pixels.float(), atol=1e-2)


def test_flip_and_rotation() -> None:
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    sizes = torch.tensor([[32.0, 32.0]])
    flipped = random_view(pixels, sizes, draws(flip=0.1), 32, IDENTITY)
    assert torch.allclose(flipped, pixels.flip(3).float(), atol=1e-2)
    quarter = random_view(pixels, sizes, draws(angle=1.0), 32, Augmentation(1.0, 90.0, 0.0))
    turned = pixels.float().rot90(1, (2, 3)), pixels.float().rot90(-1, (2, 3))
    assert min((quarter - each).abs().mean() for each in turned) < 1


@pytest.mark.parametrize("size", [(400, 200), (90, 256)])
def test_mirrored_view_is_the_view_mirrored(size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    maps = centre_maps(torch.tensor([size]), 0.9)
    view, mirror = (cut_views(pixels, each, None, 32) for each in (maps, mirrored(maps)))
    assert torch.allclose(mirror, view.flip(3), atol=1e-2)
    assert not torch.allclose(mirror, view, atol=1)


def test_left_and_top_move_crop() -> None:
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    pixels[:, :, :32, :32] = 255
    sizes = torch.tensor([[64.0, 64.0]])
    augmentation = Augmentation(0.25, 0.0, 0.0)
    corner = random_view(pixels, sizes, draws(area=0.0, left=0.0, top=0.0), 16, augmentation)
    opposite = random_view(pixels, sizes, draws(area=0.0, left=1.0, top=1.0), 16, augmentation)
    assert corner.mean() > 250
    assert opposite.mean() < 5


def test_colour_columns() -> None:
    pixels = torch.randint(60, 190, (1, 3, 16, 16), dtype=torch.uint8)
    sizes = torch.tensor([[16.0, 16.0]])
    augmentation = Augmentation(1.0, 0.0, 0.2)

    def view(**columns: float) -> Tensor:
        return random_view(pixels, sizes, draws(**columns), 16, augmentation)

    plain = pixels.float()
    assert torch.allclose(view(), plain, atol=1e-2)
    assert torch.allclose(view(brightness=1.0), plain * 1.2, atol=1e-1)
    assert view(contrast=0.0).std() < plain.std() < view(contrast=1.0).std()
    spread = [each.std(dim=1).mean() for each in (view(saturation=0.0), plain, view(saturation=1.0))]
    assert spread[0] < spread[1] < spread[2]


@settings(max_examples=40)
@given(
    st.lists(st.floats(0, 0.999), min_size=len(COLUMNS), max_size=len(COLUMNS)),
    st.integers(20, 500),
    st.integers(20, 500),
)
def test_any_draws_give_view_in_range(values: list[float], width: int, height: int) -> None:
    pixels = torch.full((1, 3, 24, 24), 200, dtype=torch.uint8)
    sizes = torch.tensor([[float(width), float(height)]])
    view = random_view(pixels, sizes, torch.tensor([values]), 16, Augmentation(0.1, 45.0, 0.5))
    assert view.shape == (1, 3, 16, 16)
    assert torch.isfinite(view).all()
    assert 0 <= view.min() <= view.max() <= 255


@given(
    st.lists(st.floats(0, 0.999), min_size=len(COLUMNS), max_size=len(COLUMNS)),
    st.integers(1, 6000),
    st.integers(1, 6000),
    st.floats(0.05, 1.0),
)
def test_crop_keeps_aspect_and_stays_inside(values: list[float], width: int, height: int, scale: float) -> None:
    sizes = torch.tensor([[float(width), float(height)]])
    column = dict(zip(COLUMNS, torch.tensor([values]).unbind(1), strict=True))
    share, centre = _random_box(column, sizes, scale)
    assert 0 < share.min() <= share.max() <= 1
    assert (centre.abs() + share).max() <= 1 + 1e-6
    box = (share * sizes)[0]
    assert RATIO[0] * (1 - 1e-5) <= box[0] / box[1] <= RATIO[1] * (1 + 1e-5)


def test_images_of_a_batch_are_independent() -> None:
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    sizes = torch.tensor([[16.0, 16.0], [32.0, 16.0], [16.0, 48.0]])
    table = torch.rand(3, len(COLUMNS))
    augmentation = Augmentation(0.3, 20.0, 0.3)
    together = random_view(pixels, sizes, table, 16, augmentation)
    for row in range(3):
        alone = random_view(pixels[row : row + 1], sizes[row : row + 1], table[row : row + 1], 16, augmentation)
        assert torch.allclose(together[row : row + 1], alone, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_autocast_changes_no_pixel(training: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    sizes, table = torch.tensor([[300.0, 200.0]]).expand(4, 2), torch.rand(4, len(COLUMNS), generator=generator)

    def view() -> Tensor:
        augmentation = Augmentation(0.3, 20.0, 0.3)
        return random_view(pixels, sizes, table, 48, augmentation) if training else centre_view(pixels, sizes, 48, 0.9)

    plain = view()
    with torch.autocast("cpu", dtype):
        assert torch.equal(view(), plain)


@given(st.integers(1, 300), st.integers(32, 512), st.integers(0, 512))
def test_view_size_grows_in_steps_of_16(epochs: int, start: int, more: int) -> None:
    size = start + more
    sizes = [view_size(epoch, epochs, start, size) for epoch in range(epochs)]
    assert sizes == sorted(sizes)
    assert all(each == size or (each - start) % 16 == 0 for each in sizes)
    assert sizes[-1] == size
    assert sizes[0] == (start if epochs > 1 else size)
    assert set(sizes[math.ceil(2 * epochs / 3) :]) <= {size}
    assert {view_size(epoch, epochs, size, size) for epoch in range(epochs)} == {size}


@given(st.lists(st.floats(0, 0.75, width=32), min_size=5, max_size=5), st.floats(0, 1, width=32))
def test_erased_box_is_inside_the_view(values: list[float], probability: float) -> None:
    [(left, top, right, bottom)] = erased_boxes(torch.tensor([values]), probability).tolist()
    assert 0 <= left <= right <= 1 + 1e-6
    assert 0 <= top <= bottom <= 1 + 1e-6
    area = (right - left) * (bottom - top)
    assert area <= 1 / 3 + 1e-6
    assert (area > 0.01) == (values[0] < probability)


def test_erased_pixels_are_grey_and_the_others_as_before() -> None:
    pixels = torch.randint(150, 256, (3, 3, 16, 16), dtype=torch.uint8)
    maps = centre_maps(torch.tensor([[16, 16]] * 3), 1.0)
    boxes = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 1.0, 0.125]])
    plain, erased = cut_views(pixels, maps, None, 16), cut_views(pixels, maps, None, 16, boxes)
    expected = plain.clone()
    expected[0, :, 8:, 4:12] = 114
    expected[2, :, :2] = 114
    assert torch.equal(erased, expected)
    assert erased.is_contiguous(memory_format=torch.channels_last)


def operation(name: str, level: float, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    at = (_OPERATIONS.index(name) + 0.5) / len(_OPERATIONS)
    return operations(torch.tensor([[at, (level + 1) / 2]]), strength)


@pytest.mark.parametrize("name", _OPERATIONS)
@pytest.mark.parametrize("level", [-1.0, 0.5])
def test_one_operation_changes_the_view_in_one_way(name: str, level: float) -> None:
    changes, factors = operation(name, level)
    still = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    angle = math.radians(30 * level)
    expected = still.clone()
    match name:
        case "shear x":
            expected[0, 0, 1] = 0.3 * level
        case "shear y":
            expected[0, 1, 0] = 0.3 * level
        case "translate x":
            expected[0, 0, 2] = 0.6 * level  # of coordinates from -1 to 1
        case "translate y":
            expected[0, 1, 2] = 0.6 * level
        case "rotate":
            expected[0, :, :2] = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    assert torch.allclose(changes, expected)
    named = [1 + 0.9 * level if name == factor else 1.0 for factor in ("brightness", "contrast", "saturation")]
    assert factors.tolist() == [pytest.approx(named)]
    weaker, paler = operation(name, level, 0.0)
    assert torch.allclose(weaker, still)
    assert paler.tolist() == [[1.0] * 3]


def test_composed_maps_sample_as_one_after_the_other() -> None:
    first, second = torch.randn(2, 5, 2, 3)
    points = torch.randn(5, 2, 1)

    def sampled(maps: Tensor, at: Tensor) -> Tensor:
        return maps[:, :, :2] @ at + maps[:, :, 2:]

    assert torch.allclose(sampled(composed(first, second), points), sampled(first, sampled(second, points)), atol=1e-5)


BOTH = np.arange(2)


@pytest.mark.parametrize("flip", ["random", "alternating", "none"])
def test_training_view_does_not_depend_on_the_other_rows(flip: str) -> None:
    sizes = torch.randint(20, 60, (50, 2), generator=torch.Generator().manual_seed(0))
    strong = Augmentation(0.35, 20.0, 0.3, flip, operation=1.0, erase=0.5)
    every, rows = training_views(sizes, 5, 3, strong, np.arange(50)), np.array([7, 7, 49, 0])
    for some, all_of_them in zip(training_views(sizes, 5, 3, strong, rows), every, strict=True):
        assert torch.equal(some, all_of_them[rows])


def test_training_views_without_additions_are_those_of_the_first_stream() -> None:
    sizes, plain = torch.tensor([[40, 30], [20, 50]]), Augmentation(0.35, 20.0, 0.3)
    table = torch.from_numpy(rng.augmentation(5, 3, 2))
    found = training_views(sizes, 5, 3, plain, BOTH)
    assert torch.equal(found.maps, random_maps(sizes, table, plain))
    assert found.colour is not None
    assert torch.equal(found.colour, colour_factors(table, plain))  # type: ignore[arg-type]
    assert found.erased is None
    changed = training_views(sizes, 5, 3, dataclasses.replace(plain, operation=1.0, erase=1.0), BOTH)
    assert not torch.equal(changed.maps, found.maps)
    assert changed.erased is not None
    colourless = training_views(sizes, 5, 3, Augmentation(0.35, 20.0, 0.0, operation=1.0), BOTH)
    assert colourless.colour is not None


@pytest.mark.parametrize("flip", ["alternating", "none"])
def test_flips_of_successive_views(flip: str) -> None:
    sizes, augmentation = torch.tensor([[32, 32]] * 40), Augmentation(1.0, 0.0, 0.0, flip=flip)
    signs = [training_views(sizes, 0, view, augmentation, np.arange(40)).maps[:, 0, 0].sign() for view in range(3)]
    if flip == "none":
        assert all((each == 1).all() for each in signs)
    else:
        assert (signs[0] == -signs[1]).all()
        assert (signs[0] == signs[2]).all()
        assert 0 < (signs[0] > 0).sum() < 40
