"""The evaluation views without torch: `centre_maps` and `cut_views` of augment.py for centre crops, in numpy.

In float32 and in torch's order of operations, so that a view differs from torch's by rounding alone.
"""

from collections.abc import Sequence

import numpy as np


def centre_views(squares: np.ndarray, sizes: Sequence[tuple[int, int]], crop: float, size: int) -> np.ndarray:
    """Centre squares with `crop` of the short side, in the original aspect: float32 (B, 3, size, size) in 0..255.

    `squares` is uint8 (B, S, S, 3), `sizes` the original widths and heights.
    """
    views = np.empty((len(squares), 3, size, size), np.float32)
    for view, square, (width, height) in zip(views, squares, sizes, strict=True):
        short = crop * min(width, height)
        view[:] = _sampled(square, np.float32(short / width), np.float32(short / height), size).transpose(2, 0, 1)
    return views


def _sampled(square: np.ndarray, share_x: np.float32, share_y: np.float32, size: int) -> np.ndarray:
    """Bilinear samples (size, size, 3) of a centred box with these shares of the width and the height."""
    left, right, to_right = _neighbours(share_x, len(square), size)
    above, below, to_below = _neighbours(share_y, len(square), size)
    to_right, to_below = to_right[:, None], to_below[:, None, None]
    top, bottom = square[above].astype(np.float32), square[below].astype(np.float32)
    samples: np.ndarray = (
        top[:, left] * ((1 - to_below) * (1 - to_right))
        + top[:, right] * ((1 - to_below) * to_right)
        + bottom[:, left] * (to_below * (1 - to_right))
        + bottom[:, right] * (to_below * to_right)
    )
    return samples


def _neighbours(share: np.float32, side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two input pixels beside each output pixel, and the weight of the second: clipped, as a reflection within half
    a pixel of the edge is."""
    edge = np.float32(1 - 1 / size)
    step = np.float64(np.float32(2) * edge / np.float32(size - 1))  # rounded once below, as a fused multiply-add is
    place = np.arange(size)
    centres = np.where(place < size // 2, step * place - edge, edge - step * (size - 1 - place)).astype(np.float32)
    at = np.clip((share * centres + np.float32(1)) * np.float32(side / 2) - np.float32(0.5), 0, side - 1)
    first = np.floor(at)
    before = first.astype(np.int64)
    return before, np.minimum(before + 1, side - 1), at - first
