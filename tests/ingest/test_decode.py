"""Every kind of image file decodes to what a viewer shows, and a broken one is rejected with a reason."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from inat_job.ingest import decode as decoding
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
def test_colours_in_every_format_and_mode(format: str, mode: str) -> None:
    pixels, size = decode(saved(quadrants().convert(mode), format), SIDE)
    assert (pixels.shape, pixels.dtype, size) == ((SIDE, SIDE, 3), np.uint8, (64, 48))
    assert corners(pixels) == EXPECTED


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_has_equal_channels(mode: str) -> None:
    pixels, _ = decode(saved(quadrants().convert(mode), "PNG"), SIDE)
    assert np.ptp(pixels, axis=2).max() == 0
    assert pixels.std() > 10


def test_16_bit_grey() -> None:
    ramp = np.linspace(0, 65535, 64 * 48, dtype=np.uint16).reshape(48, 64)
    pixels, _ = decode(saved(Image.fromarray(ramp), "PNG"), SIDE)
    assert pixels[0].mean() < 10
    assert pixels[-1].mean() > 245


def test_transparency_becomes_white() -> None:
    pixels, _ = decode(saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG"), SIDE)
    assert pixels.min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = quadrants()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that a viewer's must reverse
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, size = decode(saved(stored, "JPEG", exif=exif, quality=95), SIDE)
    assert size == (64, 48)
    assert corners(pixels) == EXPECTED


def test_jpeg_scaled_in_dct_matches_full_decode() -> None:
    large = encoded(3, (800, 600))
    early, size = decode(large, SIDE)
    late = np.asarray(Image.open(io.BytesIO(large)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    assert size == (800, 600)
    assert np.abs(early.astype(int) - late.astype(int)).mean() < 3


@pytest.mark.parametrize(
    "data", [b"", b"no image", encoded(1)[:300], encoded(1, format="PNG")[:200], b"\xff\xd8\xff\xe0"]
)
def test_broken_file_is_rejected(data: bytes) -> None:
    with pytest.raises(Rejected, match=r"\w+"):
        decode(data, SIDE)


def test_decompression_bomb_is_rejected() -> None:
    bomb = saved(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(Rejected, match="20000x20000 pixels"):
        decode(bomb, SIDE)


def icon(content: bytes) -> bytes:
    """An icon that claims to have 16x16 pixels, whatever its content."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def test_ico_and_eps_are_rejected() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    for data in (icon(buffer.getvalue()), postscript):
        with pytest.raises(Rejected, match="not an image in a known format"):
            decode(data, 32)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (encoded(1, (width, 6000), "PNG") for width in (6000, 600))
    unfolding: list[bool] = []
    original = decoding._squash

    def looking(pixels: np.ndarray, side: int) -> np.ndarray:
        unfolding.append(decoding._one_large.locked())
        return original(pixels, side)

    monkeypatch.setattr(decoding, "_squash", looking)
    decode(large, 32)
    decode(small, 32)
    assert unfolding == [True, False]
