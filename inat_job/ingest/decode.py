"""Decodes one image file to square uint8 pixels; a broken file is rejected with a reason.

Pillow decodes, with libjpeg-turbo for JPEGs, and torch resizes, with vector instructions in a third of Pillow's time.
"""

import io
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from inat_job.errors import BadDataError

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 100_000_000
"""Width times height beyond which a file is taken for a decompression bomb."""

LARGE_PIXELS = 2**25
"""Width times height beyond which images are decoded one at a time: several at once could exhaust the memory."""

FORMATS = ("JPEG", "AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of photos, the most likely first. Others run a program (EPS) or may exceed their stated size (ICO, ICNS)."""

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead: Pillow warns at one size and raises at another

_ORIENTATION_SOURCES = {"exif", "xmp", "Raw profile type exif"}
"""Metadata of a JPEG that may rotate it."""
_ORIENTATION = 0x0112

_one_large = threading.Lock()
_RGB_LIKE = ("RGB", "L", "CMYK", "YCbCr", "1")


class Rejected(BadDataError):
    """An image that cannot be read; the message is the reason."""


def decode(data: bytes, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode `data` and squash it to a square.

    Returns uint8 RGB pixels of shape (side, side, 3), and the original (width, height) as displayed (with EXIF
    orientation applied). JPEGs are scaled within the DCT, to no less than twice `side`. Raises Rejected, and
    MemoryError.
    """
    import torch  # here: the import takes seconds, during which the data set is being downloaded

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Rejected(f"{width}x{height} pixels are more than {MAX_PIXELS}")
            image.draft("RGB", (2 * side, 2 * side))
            with _one_large if image.width * image.height > LARGE_PIXELS else nullcontext():
                upright = image if _is_upright(image) else ImageOps.exif_transpose(image)
                square = _squash(torch.from_numpy(np.array(_rgb(upright))), side)  # np.array: a writable copy
            if upright is not image and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            return square, (width, height)
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError:  # its message contains a memory address
        raise Rejected("not an image in a known format" if data else "empty file") from None
    except Exception as error:  # on foreign bytes Pillow's plugins raise almost anything
        raise Rejected(f"{type(error).__name__}: {error}".replace("\n", " ")[:200]) from None


def _is_upright(image: Image.Image) -> bool:
    """Whether this is a JPEG without metadata that may rotate it; other formats have no check as cheap."""
    return image.format == "JPEG" and not image.info.keys() & _ORIENTATION_SOURCES


def _squash(pixels: "torch.Tensor", side: int) -> np.ndarray:
    """uint8 (H, W, 3) to (side, side, 3): bilinear and antialiased, equal to Pillow's resize up to rounding."""
    from torch.nn.functional import interpolate

    try:
        square = interpolate(pixels[None].permute(0, 3, 1, 2), (side, side), mode="bilinear", antialias=True)
    except RuntimeError as error:  # the shapes are valid, so it can only be memory
        raise MemoryError(str(error)) from None
    return np.ascontiguousarray(square[0].permute(1, 2, 0).numpy())


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; transparency becomes white, and 16-bit greys keep their upper byte."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _RGB_LIKE and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
