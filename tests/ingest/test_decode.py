"""Every kind of image file decodes to what a viewer shows, and a broken one to a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from inat_job.ingest.decode import Rejected, decode
from tests.harness.made_images import encoded

SIDE = 24


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green, blue and white corners."""
    image = Image.new("RGB", (width, height))
    for at, colour in enumerate(("red", "lime", "blue", "white")):
        image.paste(
            colour, (at % 2 * width // 2, at // 2 * height // 2, (at % 2 + 1) * width // 2, (at // 2 + 1) * height // 2)
        )
    return image


def corners(pixels: np.ndarray) -> list[list[int]]:
    """Colours in the middle of the quadrants, rounded to 0, 1 or 2 halves of full."""
    low, high = SIDE // 4, 3 * SIDE // 4
    return [(pixels[y, x].astype(float) / 255).round().astype(int).tolist() for y in (low, high) for x in (low, high)]


EXPECTED = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("format", "mode"),
    [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("GIF", "P")],
)
def test_colours_survive_every_format_and_mode(format: str, mode: str) -> None:
    pixels, size = decode(saved(quadrants().convert(mode), format), SIDE)
    assert (pixels.shape, pixels.dtype, size) == ((SIDE, SIDE, 3), np.uint8, (64, 48))
    assert corners(pixels) == EXPECTED


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_equal_channels(mode: str) -> None:
    pixels, _ = decode(saved(quadrants().convert(mode), "PNG"), SIDE)
    assert np.ptp(pixels, axis=2).max() == 0
    assert pixels.std() > 10


def test_sixteen_bit_grey_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64 * 48, dtype=np.uint16).reshape(48, 64)
    pixels, _ = decode(saved(Image.fromarray(ramp), "PNG"), SIDE)
    assert pixels[0].mean() < 10
    assert pixels[-1].mean() > 245


def test_transparent_becomes_white() -> None:
    pixels, _ = decode(saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"), SIDE)
    assert pixels.min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = quadrants()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a viewer's must reverse
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, size = decode(saved(stored, "JPEG", exif=exif, quality=95), SIDE)
    assert size == (64, 48)
    assert corners(pixels) == EXPECTED


def test_a_large_jpeg_is_the_same_image_whether_scaled_early_or_late() -> None:
    large = encoded(3, (800, 600))
    early, size = decode(large, SIDE)
    late = np.asarray(Image.open(io.BytesIO(large)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    assert size == (800, 600)
    assert np.abs(early.astype(int) - late.astype(int)).mean() < 3


@pytest.mark.parametrize(
    "data", [b"", b"no image", encoded(1)[:300], encoded(1, format="PNG")[:200], b"\xff\xd8\xff\xe0"]
)
def test_a_broken_file_is_rejected_with_a_reason(data: bytes) -> None:
    with pytest.raises(Rejected, match=r"\w+"):
        decode(data, SIDE)


def test_a_decompression_bomb_is_rejected_before_it_unfolds() -> None:
    bomb = saved(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(Rejected, match="20000x20000 pixels"):
        decode(bomb, SIDE)
