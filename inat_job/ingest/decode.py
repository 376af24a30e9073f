"""Decodes one image file to square uint8 pixels; a broken file is rejected with a reason.

Pillow decodes, with libjpeg-turbo for JPEGs, and torch resizes, with vector instructions in a third of Pillow's time.
Where there is no torch, integer_resize.py gives the same bytes.
"""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from inat_job.errors import BadDataError
from inat_job.ingest import kinds

Squash = Callable[[np.ndarray, int], np.ndarray]
"""Resizes uint8 (H, W, 3) to (side, side, 3)."""

MAX_PIXELS = 100_000_000
"""Width times height, after the scaling of a JPEG, beyond which a file is taken for a decompression bomb."""

MAX_BUFFERED_PIXELS = 250_000_000
"""Width times height of a JPEG whose coefficients are all kept in memory, with up to six bytes for a pixel."""

LARGE_PIXELS = 2**25
"""Width times height beyond which images are decoded one at a time: several at once could exhaust the memory."""

FORMATS = ("JPEG", "AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of photos, the most likely first. Others run a program (EPS) or may exceed their stated size (ICO, ICNS)."""

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead: Pillow warns at one size and raises at another

_ORIENTATION = 0x0112
_TURNS: dict[object, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: np.rot90(pixels, 1),
}
"""By EXIF orientation, how pixels of shape (H, W, 3) are turned upright."""

_VAGUE = ("CUR", "GBR", "ICO", "XBM")
"""Formats whose first bytes are those of others too: a TGA's, a QOI's, a comment in C."""

NEARLY = 16
"""Levels of 255 within which a channel counts as uniform: so few are left of 12 bits in 16."""

_one_large = threading.Lock()
_RGB_LIKE = ("RGB", "L", "CMYK", "YCbCr", "1", "HSV")


class Rejected(BadDataError):
    """An image that cannot be read; the message is the reason."""


def squash_with_torch(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) to (side, side, 3): bilinear and antialiased, equal to Pillow's resize up to rounding."""
    import torch
    from torch.nn.functional import interpolate

    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    try:
        square = interpolate(batch, (side, side), mode="bilinear", antialias=True)
    except RuntimeError as error:  # the shapes are valid, so it can only be memory
        raise MemoryError(str(error)) from None
    return np.ascontiguousarray(square[0].permute(1, 2, 0).numpy())


def decode(data: bytes, side: int, squash: Squash | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode `data` and squash it to a square.

    Returns uint8 RGB pixels of shape (side, side, 3), and the original (width, height) as displayed (with EXIF
    orientation applied). JPEGs are scaled within the DCT, to no less than twice `side`. `squash` is torch's by default.
    Raises Rejected, and MemoryError.
    """
    if squash is None:
        # Not above: it takes seconds, in which the data set is downloaded. Not below: no image is to blame if it fails.
        import torch  # noqa: F401

        squash = squash_with_torch
    with _rejections(data), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        size = image.size
        image.draft("RGB", (2 * side, 2 * side))
        pixels = _pixels_in_memory(image, size[0] * size[1], data)
        with _one_large if pixels > LARGE_PIXELS else nullcontext():
            return _upright(image, squash(np.array(_rgb(image)), side), size)  # np.array: a writable copy


def squash_image(image: Any, side: int, squash: Squash) -> tuple[np.ndarray, tuple[int, int]]:
    """Squash a Pillow image, or a uint8 array (H, W, 3) in RGB, from its full resolution; returns what `decode` does.

    Raises Rejected for anything else.
    """
    if isinstance(image, Image.Image):
        with _rejections():  # Pillow reads a file's pixels as late as here
            return _upright(image, squash(_not_empty(np.array(_rgb(image))), side), image.size)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return squash(_not_empty(np.array(image)), side), (image.shape[1], image.shape[0])
    raise Rejected("neither a path, bytes, a Pillow image nor a uint8 array of shape (H, W, 3)")


@contextmanager
def _rejections(data: bytes = b"") -> Iterator[None]:
    """Raise Rejected for what Pillow raises of an image, or of the file `data`."""
    try:
        yield
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError:  # its message contains a memory address
        raise Rejected(_unread(data)) from None
    except Exception as error:  # on foreign bytes Pillow's plugins raise almost anything
        if "truncated" in str(error).lower():
            raise Rejected("truncated file") from None
        raise Rejected(f"{type(error).__name__}: {error}".replace("\n", " ")[:200]) from None


def _not_empty(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), as it is. Raises Rejected without a pixel: a file always has one, an image in memory may not."""
    if pixels.size == 0:
        raise Rejected(f"{pixels.shape[1]}x{pixels.shape[0]} pixels")
    return pixels


def _upright(image: Image.Image, square: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """A square turned as the EXIF orientation says, and the (width, height) of its image as displayed."""
    orientation = _orientation(image)
    if turn := _TURNS.get(orientation):
        square = np.ascontiguousarray(turn(square))
    return square, size[::-1] if orientation in (5, 6, 7, 8) else size


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation, 1 if there is none; whatever else the metadata holds does not matter."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # on foreign bytes Pillow's parsers raise almost anything
        return 1


def _pixels_in_memory(image: Image.Image, pixels: int, data: bytes) -> int:
    """Pixels that are held in memory to decode an image of `pixels`, scaled down or not. Raises Rejected."""
    if image.format == "JPEG" and _is_buffered(data):
        if pixels > MAX_BUFFERED_PIXELS:
            raise Rejected(f"a progressive JPEG of {pixels} pixels, more than {MAX_BUFFERED_PIXELS}")
        return pixels
    if image.width * image.height > MAX_PIXELS:
        raise Rejected(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
    return image.width * image.height


def _is_buffered(data: bytes) -> bool:
    """Whether libjpeg keeps all coefficients of a JPEG in memory: it is progressive or has a scan for each channel."""
    at, channels = 2, 0
    while data[at : at + 1] == b"\xff" and at + 4 < len(data):
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if kind == 0xFF:  # padding
            at += 1
            continue
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the frame; 0xC0 and 0xC1 are sequential
            if kind > 0xC1:
                return True
            channels = data[at + 9] if at + 9 < len(data) else 0
        if kind == 0xDA:  # the first scan
            return data[at + 4] < channels
        at += 2 + length
    return True


def _unread(data: bytes) -> str:
    """The reason for rejecting a file that Pillow does not identify."""
    kind = kinds.described(data)
    if kind in ("", *kinds.TEXTS):
        kind = _format_of(data) or kind
    known = f" ({kind})" if kind else ""
    return f"not an image in a format that is read{known}" if data else "empty file"


def _format_of(data: bytes) -> str:
    """A format that Pillow reads and this job does not, by the file's first bytes; empty if unknown."""
    Image.init()
    for name in Image.ID:
        accept = Image.OPEN[name][1]
        if accept and name not in (*FORMATS, *_VAGUE) and accept(data[:16].ljust(16, b"\0")) is True:
            return f"{name}: convert it to PNG or JPEG"
    return ""


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; transparency becomes white, unless all is nearly so, and deep greys keep their upper bits."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(np.asarray(image))).convert("RGB")
    if image.mode in _RGB_LIKE and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    layered = image.convert("RGBA")
    if np.asarray(layered.getchannel("A")).max() < NEARLY:
        return layered.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _grey(deep: np.ndarray) -> np.ndarray:
    """Integers of up to 32 bits, or floats, as uint8.

    Files do not tell how many of 16 bits their camera uses: 8, 10, 12, 14 or 16, as few as hold the largest value.
    Floats are taken as 0 to 1, or as 0 to 255 if their largest is 16 or more. Otherwise the range is stretched.
    """
    deep = np.nan_to_num(deep, posinf=0, neginf=0)
    low, high = deep.min().item(), deep.max().item()
    if low >= 0 and deep.dtype.kind == "f" and (high <= 1 or NEARLY <= high <= 255):
        return (deep * (255 if high <= 1 else 1)).astype(np.uint8)
    if low >= 0 and deep.dtype.kind != "f" and high < 2**16:
        bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
        return (deep >> (bits - 8)).astype(np.uint8)
    stretched: np.ndarray = (deep.astype(np.float32) - low) * (255 / (high - low or 1))
    return stretched.astype(np.uint8)
