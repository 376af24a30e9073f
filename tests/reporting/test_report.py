"""The report in plain values, as scalars for the tracker, and as a sentence."""

from pathlib import Path

import numpy as np
import pytest

import inat_job
from inat_job.reporting import report
from tests.evaluation.made_predictions import table_of
from tests.reporting.made_reports import REPORT


def test_flatten_names_scalars_and_leaves_out_lists() -> None:
    values = report.flatten(REPORT)
    assert values["test/accuracy"] == 0.75
    assert values["settings/train/epochs"] == 1
    assert not [name for name in values if "confusion" in name or "ci95" in name]


def test_table_has_the_images_with_the_largest_losses() -> None:
    table = table_of(np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 0.0]]), [0, 1, 0, 1], ["a", "b"])
    columns, rows = report.test_table(report.hardest(table, 2))
    assert columns == ["id", "label", "predicted", "loss", "confidence"]
    assert [row[:3] for row in rows] == [["test/0003", "b", "a"], ["test/0001", "b", "a"]]
    assert rows[0][3:] == pytest.approx([np.log1p(np.exp(3)), 1 / (1 + np.exp(-3))])


def test_result_sentence_of_test_time_augmentation() -> None:
    assert report.result_sentence(REPORT | {"test_tta": {"accuracy": 0.8}}).endswith("0.950). With --tta flip: 0.8000.")


def test_result_sentence() -> None:
    assert report.result_sentence(REPORT) == "Test accuracy 0.7500 (3 of 4 images, 95 % interval 0.300 to 0.950)."


@pytest.mark.parametrize(("text", "after"), [("abc\n", "+abc"), ("unknown\n", ""), ("", ""), (None, "")])
def test_code_version_names_the_commit_of_the_container_image(tmp_path: Path, text: str | None, after: str) -> None:
    path = tmp_path / "REVISION"
    if text is not None:
        path.write_text(text)
    assert report.code_version(path) == f"{inat_job.__version__}{after}"


def test_cost_counts_all_devices_and_needs_a_price() -> None:
    assert report.cost(2, 1800.0, 3.0) == {"device_seconds": 3600.0, "price_per_hour": 3.0, "total": 3.0}
    assert report.cost(1, 1800.0, None) == {"device_seconds": 1800.0, "price_per_hour": None, "total": None}
    assert report.cost(1, 1800.0, 0.0)["total"] == 0.0


def test_environment_names_versions_and_execution() -> None:
    section = report.environment("cpu", {"precision": "fp32"})
    assert section["versions"].keys() >= {"python", "torch", "lightning"}
    assert section["execution"] == {"precision": "fp32"}
