"""Class weights and balanced epochs, as pure functions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inat_job.data.imbalance import balanced_order, balanced_weights, earlier_times

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array)


@given(LABELS)
def test_balanced_weights_give_each_class_the_same(labels: np.ndarray) -> None:
    counts = np.bincount(labels, minlength=7)
    weights, present = balanced_weights(counts), counts > 0
    np.testing.assert_allclose(weights[labels].mean(), 1)
    np.testing.assert_allclose((weights * counts)[present], len(labels) / present.sum())
    assert (weights[~present] == 0).all()


@given(LABELS, st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_balanced_epoch_has_each_class_equally_often(labels: np.ndarray, seed: int, epoch: int) -> None:
    order = balanced_order(seed, epoch, labels)
    assert (order.shape, order.dtype) == (labels.shape, np.int64)
    drawn = np.bincount(labels[order], minlength=6)[np.unique(labels)]
    assert drawn.max() - drawn.min() <= 1
    times = np.bincount(order, minlength=len(labels))
    for label in np.unique(labels):
        of_class = times[labels == label]
        assert of_class.max() - of_class.min() <= 1
    assert np.array_equal(order, balanced_order(seed, epoch, labels))


@given(st.lists(st.integers(0, 9), max_size=60))
def test_earlier_times_counts_a_row_so_far(rows: list[int]) -> None:
    expected = [rows[:at].count(row) for at, row in enumerate(rows)]
    assert earlier_times(np.array(rows, dtype=np.int64)).tolist() == expected


def test_balanced_epochs_differ_and_leave_no_image_out() -> None:
    labels = np.repeat([0, 1, 2], [90, 9, 1])
    orders = [balanced_order(0, epoch, labels) for epoch in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert set(np.concatenate(orders).tolist()) == set(range(100))
    assert not np.array_equal(orders[0], balanced_order(1, 0, labels))


def test_balanced_order_has_not_changed() -> None:
    """A run that began with an earlier version must resume with the same draws."""
    assert balanced_order(0, 2, np.array([0] * 6 + [1] * 2)).tolist() == [0, 5, 7, 1, 2, 6, 6, 7]
