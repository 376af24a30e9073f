"""Squashes an image to a square without torch, to the same bytes: for machines that have onnxruntime alone.

The arithmetic is that of torch's antialiased bilinear resize of uint8 (aten/src/ATen/native/cpu/UpSampleKernel.cpp,
which follows Pillow-SIMD): weights of 16 bits, rows before columns, and rounding to uint8 in between.
"""

import numpy as np

_MOST_BITS, _LIMIT = 22, 2**15
"""Bits behind the point of a weight at most, and what the largest weight stays below."""


def squash_without_torch(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) to (side, side, 3), equal to what `decode.squash_with_torch` gives."""
    return np.ascontiguousarray(_shrink_rows(_shrink_rows(pixels.swapaxes(0, 1), side).swapaxes(0, 1), side))


def _shrink_rows(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (N, M, 3) to (side, M, 3), weighted over the first axis."""
    if len(pixels) == side:
        return pixels
    first, weights, bits = _weights(len(pixels), side)
    total = np.full((side, *pixels.shape[1:]), 1 << (bits - 1), np.int32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(first + tap, len(pixels) - 1)  # whose weight is zero beyond the last
        total += weights[:, tap, None, None] * pixels[rows]
    shrunk: np.ndarray = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return shrunk


def _weights(size: int, side: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The first input row of each output row, its weights int32 (side, taps), and their bits behind the point."""
    scale = size / side
    support, inverse = max(scale, 1.0), min(1 / scale, 1.0)
    centre = scale * (np.arange(side) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), size) - first
    taps = np.arange(2 * int(np.ceil(support)) + 1)
    triangle = 1 - np.abs((taps + first[:, None] - centre[:, None] + 0.5) * inverse)
    triangle = np.where(taps < count[:, None], np.maximum(triangle, 0), 0)
    shares = triangle / triangle.sum(axis=1, keepdims=True)
    bits = next((b for b in range(_MOST_BITS) if int(0.5 + shares.max() * (1 << (b + 1))) >= _LIMIT), _MOST_BITS)
    return first, (0.5 + shares * (1 << bits)).astype(np.int32), bits
