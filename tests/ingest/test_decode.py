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


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_few_bits_in_16(bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64 * 48).astype(np.uint16).reshape(48, 64)
    for format in ("PNG", "TIFF"):
        pixels, _ = decode(saved(Image.fromarray(ramp), format), SIDE)
        assert pixels[0].mean() < 10
        assert pixels[-1].mean() > 245


@pytest.mark.parametrize("low", [0, -1000, -(2**31)])
@pytest.mark.parametrize("high", [200_000, 2**24, 2**31 - 1])
def test_grey_of_32_bits(low: int, high: int) -> None:
    ramp = np.linspace(low, high, 64 * 48).astype(np.int32).reshape(48, 64)
    pixels, _ = decode(saved(Image.fromarray(ramp), "TIFF"), SIDE)
    assert pixels[0].mean() < 10
    assert pixels[-1].mean() > 245
    assert (np.diff(pixels[:, :, 0].astype(int), axis=0) >= 0).all()


@pytest.mark.parametrize("high", [1.0, 1.0001, 2.0, 10.0, 255.0, 1e9])
def test_grey_of_floats(high: float) -> None:
    ramp = np.linspace(0, high, 64 * 48, dtype=np.float32).reshape(48, 64)
    pixels, _ = decode(saved(Image.fromarray(ramp), "TIFF"), SIDE)
    assert pixels[0].mean() < 10
    assert pixels[-1].mean() > 245


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    pixels, _ = decode(saved(image, "PNG"), SIDE)
    assert pixels[:, 0].tolist() == [[0, 0, 255]] * SIDE
    assert pixels[:, -1].min() == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("opacity", [0, 1, 2])
def test_transparent_image_keeps_its_colours(opacity: int, mode: str) -> None:
    image = quadrants().convert(mode)
    image.putalpha(opacity)
    pixels, _ = decode(saved(image, "PNG"), SIDE)
    assert np.ptp(pixels) > 100


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


def odd_exif(orientation: int) -> bytes:
    """EXIF with an orientation and a rational of -1/0, which Pillow reads and cannot write."""
    entries = struct.pack("<HHHIHH", 2, 0x0112, 3, 1, orientation, 0) + struct.pack("<HHII", 0x9201, 10, 1, 38)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries + struct.pack("<Iii", 0, -1, 0)


@pytest.mark.filterwarnings("ignore:.*orrupt EXIF", "ignore:Truncated File")
@pytest.mark.parametrize("exif", [odd_exif(6), odd_exif(6)[:-9], b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0??"])
def test_odd_metadata_rejects_no_image(exif: bytes) -> None:
    turned = len(exif) > 30
    stored = quadrants().transpose(Image.Transpose.ROTATE_90) if turned else quadrants()
    pixels, size = decode(saved(stored, "JPEG", exif=exif, quality=95), SIDE)
    assert size == (64, 48)
    assert corners(pixels) == EXPECTED


@pytest.mark.parametrize("progressive", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_jpeg_of_108_megapixels_is_scaled_down(progressive: bool) -> None:
    tile = quadrants(1200, 900).resize((12000, 9000), Image.Resampling.NEAREST)
    pixels, size = decode(saved(tile, "JPEG", progressive=progressive), SIDE)
    assert size == (12000, 9000)
    assert corners(pixels) == EXPECTED


def stated_size(jpeg: bytes, size: int) -> bytes:
    """A JPEG whose frame states another width and height."""
    at = next(jpeg.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in jpeg)
    return jpeg[: at + 5] + struct.pack(">HH", size, size) + jpeg[at + 9 :]


def test_jpeg_beyond_bounded_memory_is_rejected() -> None:
    with pytest.raises(Rejected, match="a progressive JPEG of 4225000000 pixels, more than"):
        decode(stated_size(saved(quadrants(), "JPEG", progressive=True), 65000), SIDE)
    assert not decoding._is_buffered(saved(quadrants(), "JPEG"))
    assert decoding._is_buffered(saved(quadrants(), "JPEG", progressive=True))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image: convert it to JPEG"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a video"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-lfs pointer: run git lfs pull"),
        (b"<?xml version='1.0'?><annotation/>", "XML"),
        (b"%PDF-1.4", "a PDF document"),
        (b"PK\3\4....", "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"/* XPM */\nstatic char", "XPM: convert it to PNG or JPEG"),
        (b"/* a comment */", "text"),
        (b"qoif" + bytes(9), "QOI: convert it to PNG or JPEG"),
        (b"\0\0\2\0\1\0" + bytes(30), "an icon"),
        (b"a,b\n1,2\n", "text"),
        (b"\0\0\0\x1cftypcrx \0\0\0\1crx isom", "a camera's raw image: convert it to JPEG"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(90), "a camera's raw image: convert it to JPEG"),
        (b"MM\0*\0\0\0\x08" + bytes(90), "a camera's raw image or a damaged TIFF: convert it to JPEG"),
        (b"\0\0\0\x1cftypavis" + bytes(90), "a damaged AVIF image or sequence"),
        (bytes(128) + b"DICM", "a DICOM image: convert it to PNG"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>", "an HTML page"),
        (b"<!-- a -->\n<!-- b --><html>", "an HTML page"),
        (b"<!-- generator --><svg xmlns=''/>", "an SVG drawing"),
        ("Zażółć gęślą".encode() * 99, "text"),
        ("hello".encode("utf-16"), "text"),
        (b"{\\rtf1 a}", "an RTF document"),
        ('{"a": "ż"}'.encode(), "JSON or text"),
        (b"Rar!", "a RAR archive"),
    ],
)
def test_reason_names_the_found_format(data: bytes, found: str) -> None:
    with pytest.raises(Rejected) as caught:
        decode(data, SIDE)
    assert str(caught.value) == f"not an image in a format that is read ({found})"


def test_tga_is_no_icon() -> None:
    with pytest.raises(Rejected) as caught:
        decode(b"\0\0\2" + bytes(9) + b"\x20\0\x20\0\x18\0" + bytes(3072), SIDE)
    assert str(caught.value) == "not an image in a format that is read"


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
        with pytest.raises(Rejected, match="not an image in a format that is read"):
            decode(data, 32)


@pytest.mark.soak
def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (encoded(1, (width, 6000), "PNG") for width in (6000, 600))
    unfolding: list[bool] = []
    original = decoding.squash_with_torch

    def looking(pixels: np.ndarray, side: int) -> np.ndarray:
        unfolding.append(decoding._one_large.locked())
        return original(pixels, side)

    monkeypatch.setattr(decoding, "squash_with_torch", looking)
    decode(large, 32)
    decode(small, 32)
    assert unfolding == [True, False]
