"""Metrics of a split, compared with cases computed by hand, with slow definitions and with scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.dummy import DummyClassifier

from inat_job.evaluation.metrics import confusion_matrix, majority_baseline, split_metrics, wilson_interval
from tests.evaluation.made_predictions import drawn_table, table_of

EXACT = {"rel": 1e-12, "abs": 1e-12}


def one_hot(predicted: list[int], classes: int) -> np.ndarray:
    return np.eye(classes)[predicted] * 10


def test_split_metrics_of_a_small_case_computed_by_hand() -> None:
    section = split_metrics(table_of(one_hot([0, 1, 1, 1, 0], 3), [0, 0, 1, 1, 2], ["a", "b", "c"]), 1.0)
    assert section["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert (section["n"], section["correct"], section["accuracy"]) == (5, 3, 0.6)
    interval = list(wilson_interval(2, 2))
    expected = {"n": 2, "precision": pytest.approx(2 / 3), "recall": 1.0, "recall_ci95": interval, "f1": 0.8}
    assert section["per_class"]["b"] == expected
    assert section["per_class"]["c"] | {"recall_ci95": 0} == {
        "n": 1, "precision": 0.0, "recall": 0.0, "recall_ci95": 0, "f1": 0.0
    }  # fmt: skip
    assert section["loss"] == pytest.approx(4.0, abs=0.01)
    assert section["ece"] == pytest.approx(0.4, abs=0.01)
    assert section["balanced_accuracy"] == 0.5
    assert section["top3_accuracy"] == 1.0


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (3, 12), (60, 5), (2000, 10), (500, 150)])
@pytest.mark.parametrize("skill", [0.0, 1.5])
def test_metrics_are_those_of_scikit_learn(n: int, classes: int, skill: float) -> None:
    for seed in range(5):
        table = drawn_table(seed, n, classes, skill)
        section, labels, predicted = split_metrics(table, 1.7), table.labels, table.predicted
        every = list(range(classes))
        assert section["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted), **EXACT)
        occurring = {"labels": np.union1d(labels, predicted), "average": "macro", "zero_division": 0}
        assert section["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, **occurring), **EXACT)
        present = {"labels": np.unique(labels), "average": "macro"}
        assert section["balanced_accuracy"] == pytest.approx(
            reference.recall_score(labels, predicted, **present), **EXACT
        )
        assert section["loss"] == pytest.approx(reference.log_loss(labels, table.probabilities, labels=every), **EXACT)
        assert section["confusion"] == reference.confusion_matrix(labels, predicted, labels=every).tolist()
        if classes > 2:  # scikit-learn reads two classes otherwise
            top = reference.top_k_accuracy_score(labels, table.probabilities, k=3, labels=every)
            assert section["top3_accuracy"] == pytest.approx(top, **EXACT)
        triple = reference.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
        for name, precision, recall, f1, support in zip(section["per_class"].values(), *triple, strict=True):
            assert name["n"] == support
            found = (name["precision"], name["recall"], name["f1"])
            assert found == pytest.approx((precision, recall, f1), **EXACT)


def test_balanced_accuracy_of_every_class_is_that_of_scikit_learn() -> None:
    table = drawn_table(1, 400, 7)
    expected = reference.balanced_accuracy_score(table.labels, table.predicted)
    assert split_metrics(table, 1.0)["balanced_accuracy"] == pytest.approx(expected, **EXACT)


def test_calibrated_loss_is_that_of_divided_logits() -> None:
    draws = np.random.default_rng(0)
    logits, labels = draws.standard_normal((50, 4)).astype(np.float32), draws.integers(0, 4, 50).tolist()
    plain, divided = table_of(logits, labels), table_of(logits / np.float32(2), labels)
    section = split_metrics(plain, 2.0)["calibrated"]
    assert section == pytest.approx({name: split_metrics(divided, 1.0)[name] for name in ("loss", "ece")}, **EXACT)


def test_top3_counts_the_first_of_equally_probable_classes() -> None:
    table = table_of(np.zeros((5, 5)), [0, 1, 2, 3, 4])
    section = split_metrics(table, 1.0)
    assert (section["accuracy"], section["top3_accuracy"]) == (1 / 5, 3 / 5)


def test_majority_baseline_is_that_of_scikit_learn() -> None:
    table = drawn_table(3, 200, 6)
    train = np.random.default_rng(4).integers(0, 6, 90)
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((90, 1)), train)
    found = majority_baseline(train, table)
    assert found["accuracy"] == pytest.approx(dummy.score(np.zeros((200, 1)), table.labels), **EXACT)
    assert found["class"] == table.classes[dummy.predict([[0]])[0]]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_confusion_matrix_counts_every_image_once(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = map(list, zip(*pairs, strict=True))
    matrix = confusion_matrix(table_of(one_hot(predicted, 4), labels))
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


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_that_of_scipy(case: tuple[int, int]) -> None:
    from scipy.stats import binomtest

    expected = binomtest(*case).proportion_ci(0.95, method="wilson")
    assert wilson_interval(*case) == pytest.approx((expected.low, expected.high), abs=1e-12)
