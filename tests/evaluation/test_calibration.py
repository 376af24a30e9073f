"""Calibration: the temperature against scipy's minimum, the calibration error against its definition."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import log_softmax, softmax

from inat_job.evaluation.calibration import expected_calibration_error, fit_temperature, reliability, tempered
from inat_job.evaluation.prediction_table import PredictionTable, log_probabilities
from tests.evaluation.made_predictions import drawn_table, table_of


def loss_at(table: PredictionTable, temperature: float) -> float:
    logs = log_softmax(np.log(table.probabilities) / temperature, axis=1)
    return float(-logs[np.arange(len(table)), table.labels].mean())


@pytest.mark.parametrize(("n", "classes", "scale"), [(40, 2, 1.0), (500, 10, 4.0), (500, 10, 0.2), (300, 100, 8.0)])
def test_temperature_has_the_least_loss_that_scipy_finds(n: int, classes: int, scale: float) -> None:
    for seed in range(5):
        table = drawn_table(seed, n, classes, scale=scale)
        found = fit_temperature(table)
        best = optimize.minimize_scalar(
            lambda inverse, table=table: loss_at(table, 1 / inverse),
            bounds=(0.05, 20),
            method="bounded",
            options={"xatol": 1e-12},
        )
        assert found == pytest.approx(1 / best.x, rel=1e-5)  # a minimum is flat: its place has half of the digits
        assert loss_at(table, found) <= best.fun + 1e-14
        assert loss_at(table, found) < loss_at(table, 1.0)


def test_temperature_undoes_a_scale() -> None:
    calibrated = drawn_table(0, 400, 5)
    scaled = drawn_table(0, 400, 5, scale=3.0)
    assert fit_temperature(scaled) == pytest.approx(3 * fit_temperature(calibrated), rel=1e-6)


def test_temperature_is_one_where_nothing_is_learned_of_it() -> None:
    right = table_of(np.eye(4)[[0, 1, 2, 3] * 3], [0, 1, 2, 3] * 3)
    assert fit_temperature(right) == 1.0
    assert fit_temperature(right.split("val")) == 1.0


def test_temperature_is_bounded_for_predictions_worse_than_chance() -> None:
    assert fit_temperature(table_of(np.eye(4)[[0, 1, 2, 3] * 3], [1, 2, 3, 0] * 3)) == 20.0


def test_temperature_of_predictions_that_are_certain_is_finite() -> None:
    table = table_of(np.array([[4000.0, 0, 0], [0, 4000, 0], [0, 0, 4000]] * 4), [*([0, 1, 2] * 4)[:-1], 0])
    assert fit_temperature(table) == 20.0
    assert np.isfinite(tempered(table, 20.0).losses).all()


def test_tempered_probabilities_are_those_of_divided_logits() -> None:
    table = drawn_table(2, 30, 4)
    expected = softmax(log_probabilities(table.probabilities) / 2.5, axis=1)
    assert tempered(table, 2.5).probabilities == pytest.approx(expected, abs=1e-14)
    assert np.array_equal(tempered(table, 1.0).probabilities, table.probabilities)


def test_calibration_error_of_confident_right_and_wrong_predictions() -> None:
    logits = np.array([[50.0, 0.0]] * 4)
    assert expected_calibration_error(table_of(logits, [0] * 4)) == pytest.approx(0)
    assert expected_calibration_error(table_of(logits, [1] * 4)) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_and_bins_follow_their_definition(seed: int) -> None:
    table = drawn_table(seed, 300, 5)
    confidence, correct = table.probabilities.max(axis=1), table.predicted == table.labels
    error, bins = 0.0, reliability(table)
    assert len(bins) == 15
    assert sum(each["count"] for each in bins) == 300
    for number, each in enumerate(bins):
        inside = (confidence >= number / 15) & (confidence < (number + 1) / 15)
        assert each["count"] == inside.sum()
        if not each["count"]:
            assert each == {"count": 0, "confidence": None, "accuracy": None}
            continue
        assert each["confidence"] == pytest.approx(confidence[inside].mean(), abs=1e-12)
        assert each["accuracy"] == pytest.approx(correct[inside].mean(), abs=1e-12)
        error += inside.mean() * abs(each["confidence"] - each["accuracy"])
    assert expected_calibration_error(table) == pytest.approx(error, abs=1e-12)


def test_temperature_takes_few_passes_over_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from inat_job.evaluation import calibration

    passes: list[int] = []
    softmax_of = calibration.softmax
    monkeypatch.setattr(calibration, "softmax", lambda logits: (passes.append(1), softmax_of(logits))[1])
    fit_temperature(drawn_table(0, 2000, 10, scale=5.0))
    assert len(passes) <= 25
