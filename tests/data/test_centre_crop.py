"""The evaluation views without torch are torch's, up to the rounding of float32."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from inat_job.data.augment import centre_maps, cut_views
from inat_job.data.centre_crop import centre_views

LENGTHS = st.integers(1, 3000)


@given(st.tuples(LENGTHS, LENGTHS), st.floats(0.1, 1.0), st.integers(32, 140), st.floats(1.0, 1.4), st.integers(0, 9))
@example((640, 480), 1.0, 224, 1.15, 0)
@example((1, 3000), 0.1, 32, 1.0, 0)
def test_views_equal_torchs(sizes: tuple[int, int], crop: float, size: int, margin: float, seed: int) -> None:
    side = int(size * margin)
    squares = np.random.default_rng(seed).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    both = [sizes, sizes[::-1]]
    pixels = torch.from_numpy(squares).permute(0, 3, 1, 2)
    expected = cut_views(pixels, centre_maps(torch.tensor(both), crop), None, size).numpy()
    # A coordinate near the side is off by at most one unit in its last place, 1e-5 pixels, and neighbours by 255.
    np.testing.assert_allclose(centre_views(squares, both, crop, size), expected, atol=5e-3)
