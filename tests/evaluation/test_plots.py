"""Diagrams are drawn for any names and any number of classes."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inat_job.evaluation import calibration, plots
from inat_job.evaluation.plots import CurveMarks
from tests.evaluation.made_predictions import drawn_table
from tests.evaluation.test_canvas import HOSTILE


@pytest.mark.parametrize("classes", [["a", "b"], list(HOSTILE), [f"class {number}" for number in range(150)]])
def test_confusion_matrix_plot(classes: list[str], tmp_path: Path) -> None:
    matrix = [[int(i == j) for j in range(len(classes))] for i in range(len(classes))]
    plots.confusion_matrix(matrix, classes, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.width == 992
        assert not image.info.get("Software")


ROWS = [
    {"step": 10, "train_loss": 1.0, "lr": 0.1},
    {"step": 12, "val_loss": 0.9, "val_accuracy": 0.5},
    {"step": 20, "train_loss": 0.5, "lr": 0.05},
    {"step": 24, "val_loss": 0.8, "val_accuracy": 0.6},
]


def drawn_panels(
    rows: list[dict[str, Any]], marks: CurveMarks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The axes of the figure by the first line of their titles."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plots.learning_curves(rows, tmp_path / "c.png", marks)
    return {axes.get_title().splitlines()[0]: axes for axes in figures[0].axes}


def test_training_loss_has_axes_of_its_own_which_say_how_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels = drawn_panels(ROWS, CurveMarks(24, (12,), "labels smoothed by 0.1"), tmp_path, monkeypatch)
    assert list(panels) == ["Training loss", "Validation loss", "Learning rate of the head", "Validation accuracy"]
    assert "labels smoothed by 0.1" in panels["Training loss"].get_title()
    curve, attempt = panels["Training loss"].lines
    assert list(curve.get_ydata()) == [1.0, 0.5]
    assert list(attempt.get_xdata()) == [12, 12]
    _, _, best = panels["Validation accuracy"].lines
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([24], [0.6])


def test_learning_curves_of_a_run_and_of_a_single_row(tmp_path: Path) -> None:
    for number, some in enumerate((ROWS, ROWS[:1])):
        plots.learning_curves(some, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 1000


def test_reliability_diagram_shows_the_bins_that_have_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = drawn_table(0, 200, 4)
    bins, cooled = calibration.reliability(table), calibration.reliability(calibration.tempered(table, 2.0))
    plots.reliability_diagram(bins, cooled, 2.0, tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 1000
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plots.reliability_diagram(bins, cooled, 2.0, tmp_path / "r.png")
    above, below = figures[0].axes
    points = above.containers[0].lines[0]
    assert list(points.get_ydata()) == [each["accuracy"] for each in bins if each["count"]]
    assert [bar.get_height() for bar in below.patches] == [each["count"] for each in bins]
