"""The squash without torch gives torch's bytes."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from inat_job.ingest.decode import decode, squash_with_torch
from inat_job.ingest.integer_resize import squash_without_torch
from tests.harness.made_images import encoded

LENGTHS = st.integers(1, 400)


@given(LENGTHS, LENGTHS, st.integers(1, 130), st.integers(0, 9))
@example(1, 1, 1, 0)
@example(2000, 3, 40, 0)
@example(40, 40, 40, 0)
@example(80, 41, 40, 0)
def test_squash_equals_torchs(height: int, width: int, side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(squash_without_torch(pixels, side), squash_with_torch(pixels, side))


def test_decoded_bytes_are_equal_for_a_photo() -> None:
    data = encoded(0, (640, 425))
    ours, theirs = (decode(data, 72, squash) for squash in (squash_without_torch, squash_with_torch))
    assert ours[1] == theirs[1]
    assert np.array_equal(ours[0], theirs[0])
