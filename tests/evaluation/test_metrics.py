"""Metrics of a split, compared with cases computed by hand and with slow definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inat_job.evaluation.metrics import confusion_matrix, expected_calibration_error, split_metrics, wilson_interval


def test_split_metrics_of_a_small_case_computed_by_hand() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 1, 1, 1, 0])
    logits = torch.nn.functional.one_hot(predicted, 3).float() * 10
    section = split_metrics(logits, labels, ["a", "b", "c"])
    assert section["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert (section["n"], section["correct"], section["accuracy"]) == (5, 3, 0.6)
    assert section["per_class"]["b"] == {"n": 2, "precision": pytest.approx(2 / 3), "recall": 1.0, "f1": 0.8}
    assert section["per_class"]["c"] == {"n": 1, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert section["loss"] == pytest.approx(4.0, abs=0.01)
    assert section["ece"] == pytest.approx(0.4, abs=0.01)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_confusion_matrix_counts_every_image_once(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = (torch.tensor(column) for column in zip(*pairs, strict=True))
    matrix = confusion_matrix(predicted, labels, 4)
    assert matrix.sum() == len(pairs)
    for actual in range(4):
        for guess in range(4):
            assert matrix[actual, guess] == pairs.count((actual, guess))


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_contains_the_proportion(case: tuple[int, int]) -> None:
    correct, n = case
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n + 1e-12
    assert correct / n - 1e-12 <= high <= 1


def test_wilson_interval_of_a_known_case() -> None:
    assert wilson_interval(50, 100) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_calibration_error_of_confident_right_and_wrong_predictions() -> None:
    logits = torch.tensor([[50.0, 0.0]] * 4)
    assert expected_calibration_error(logits, torch.zeros(4, dtype=torch.long)) == pytest.approx(0)
    assert expected_calibration_error(logits, torch.ones(4, dtype=torch.long)) == pytest.approx(1)
