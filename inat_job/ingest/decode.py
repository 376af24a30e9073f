"""One image file to square uint8 pixels; a broken file becomes a named reason.

libjpeg-turbo unfolds it, through Pillow, and torch squashes it: with vector instructions, in a third of Pillow's time.
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

LARGEST_PIXELS = 100_000_000
"""Width times height beyond which a file is taken for a decompression bomb."""

LARGE_PIXELS = 2**25
"""Width times height beyond which images are unfolded one after the other: a few at once may take all the memory."""

FORMATS = ("JPEG", "AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Those of photos, the likeliest first. Others start a program (EPS) or may exceed the size they tell (ICO, ICNS)."""

Image.MAX_IMAGE_PIXELS = None  # Pillow would warn and raise by turns; the check is ours

_TURNERS = {"exif", "xmp", "Raw profile type exif"}
"""What of a JPEG may say that it is to be turned."""
_ORIENTATION = 0x0112

_one_large = threading.Lock()
_RGB_LIKE = ("RGB", "L", "CMYK", "YCbCr", "1")


class Rejected(BadDataError):
    """A image that cannot be read; the message is the reason."""


def decode(data: bytes, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode `data` and squash it to a square.

    Returns uint8 RGB pixels of shape (side, side, 3), and the original (width, height) as it is to be looked at
    (EXIF orientation applied). JPEGs are scaled within the DCT down to no less than twice `side`. Raises Rejected,
    and MemoryError.
    """
    import torch  # here: it takes seconds, in which the data set is on its way

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST_PIXELS:
                raise Rejected(f"{width}x{height} pixels are more than {LARGEST_PIXELS}")
            image.draft("RGB", (2 * side, 2 * side))
            with _one_large if image.width * image.height > LARGE_PIXELS else nullcontext():
                turned = image if _upright(image) else ImageOps.exif_transpose(image)
                squashed = _squash(torch.from_numpy(np.array(_rgb(turned))), side)  # a copy that may be written to
            if turned is not image and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8):
                width, height = height, width
            return squashed, (width, height)
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError:  # its text has an address in memory
        raise Rejected("not a image of a format that is known" if data else "empty file") from None
    except Exception as error:  # foreign bytes make Pillow's plugins raise nearly anything
        raise Rejected(f"{type(error).__name__}: {error}".replace("\n", " ")[:200]) from None


def _upright(image: Image.Image) -> bool:
    """Whether this is a JPEG of which nothing says that it is to be turned; that of others is not known as cheaply."""
    return image.format == "JPEG" and not image.info.keys() & _TURNERS


def _squash(pixels: "torch.Tensor", side: int) -> np.ndarray:
    """uint8 (H, W, 3) to (side, side, 3): bilinear and antialiased, as Pillow's resize, to within a rounding."""
    from torch.nn.functional import interpolate

    try:
        square = interpolate(pixels[None].permute(0, 3, 1, 2), (side, side), mode="bilinear", antialias=True)
    except RuntimeError as error:  # its shapes are right, so that it is the memory
        raise MemoryError(str(error)) from None
    return np.ascontiguousarray(square[0].permute(1, 2, 0).numpy())


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; what is transparent becomes white, and 16-bit greys keep their upper byte."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _RGB_LIKE and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
