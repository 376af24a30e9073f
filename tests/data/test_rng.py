"""Random draws: pure functions of seed, epoch, view and step."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inat_job.data import rng


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.integers(0, 64))
def test_step_seeds_fit_torch_and_differ(seed: int, step: int, rank: int) -> None:
    one = rng.step_seed(seed, step, rank)
    assert 0 <= one < 2**63
    assert one not in (rng.step_seed(seed, step + 1, rank), rng.step_seed(seed, step, rank + 1))


def test_draws_do_not_depend_on_earlier_draws() -> None:
    first = rng.order(3, 1, 50), rng.augmentation(3, 1, 50)
    rng.order(3, 0, 50), rng.augmentation(3, 0, 50)
    for one, other in zip(first, (rng.order(3, 1, 50), rng.augmentation(3, 1, 50)), strict=True):
        assert np.array_equal(one, other)
    assert sorted(first[0]) == list(range(50))
    assert (first[1].shape, first[1].dtype) == ((50, len(rng.COLUMNS)), np.float32)


def test_draws_of_a_view_have_not_changed() -> None:
    """The key of cached features holds VIEW_FORMAT and the seed, and not the draws."""
    columns = "area ratio left top flip angle brightness contrast saturation"
    draws = "0.76662 0.19806 0.81099 0.35804 0.33429 0.45411 0.06199 0.37448 0.84990"
    found = " ".join(f"{draw:.5f}" for draw in rng.augmentation(seed=5, view=3, rows=2)[1])
    assert (" ".join(rng.COLUMNS), found) == (columns, draws), (
        "the draws changed: raise VIEW_FORMAT in data/augment.py, or features of other views are reused"
    )


def test_draws_have_not_changed() -> None:
    """A run that began with an earlier version must resume with the same draws."""
    assert rng.order(0, 0, 8).tolist() == [3, 6, 4, 0, 7, 5, 2, 1]
    assert rng.augmentation(0, 2, 3)[1, :3].tolist() == [0.9432896971702576, 0.2327425479888916, 0.8338075280189514]
    assert rng.step_seed(0, 5, 1) == 3574110592955793954


def test_new_streams_have_not_changed() -> None:
    found = [rng.operations(5, 3, 2)[1, 0], rng.erasing(5, 3, 2)[1, 0], rng.mixing(5, 3).random()]
    assert [f"{each:.5f}" for each in found] == ["0.38119", "0.23872", "0.71485"]
    assert (rng.operations(0, 0, 4).shape, rng.erasing(0, 0, 4).shape) == ((4, 2), (4, 5))


@given(st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_alternating_flips_turn_each_image_with_each_view(seed: int, view: int) -> None:
    one, other, again = (rng.alternating_flips(seed, view + later, 200) for later in range(3))
    assert (one != other).all()
    assert (one == again).all()
    assert 40 < one.sum() < 160
