"""Plots are drawn for any names and any number of classes."""

from pathlib import Path

import pytest
from PIL import Image

from inat_job.evaluation import plots


@pytest.mark.parametrize("classes", [["a", "b"], ["$x_$", "%<&>"], [f"class {number}" for number in range(150)]])
def test_confusion_matrix_plot(classes: list[str], tmp_path: Path) -> None:
    matrix = [[int(i == j) for j in range(len(classes))] for i in range(len(classes))]
    plots.confusion_matrix(matrix, classes, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert 300 < image.width < 4000


def test_learning_curves_of_a_run_and_of_a_single_row(tmp_path: Path) -> None:
    rows = [{"step": 10, "train_loss": 1.0}, {"step": 20, "val_loss": 0.9, "val_accuracy": 0.5}]
    for number, some in enumerate((rows, rows[:1])):
        plots.learning_curves(some, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 1000
