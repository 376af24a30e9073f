"""The report's other forms: single values for the tracker, a sentence and a page for people."""

from pathlib import Path

import pytest

import inat_job
from inat_job.reporting import html, report

DONE = {
    "run_id": "<b>run</b>",
    "test": {
        "n": 4,
        "correct": 3,
        "accuracy": 0.75,
        "ci95": [0.3, 0.95],
        "per_class": {"A & B": {"n": 4, "precision": 0.5, "recall": 1.0, "f1": 2 / 3}},
        "confusion": [[3, 1], [0, 0]],
    },
    "model": {"name": "five_block", "parameters": 1234, "macs": 5678},
    "data": {"n_train": 8, "n_val": 2, "n_test": 4},
    "settings": {"train": {"epochs": 1}},
    "throughput": {"train_images_per_s": 1234.5},
    "cost": {"device_seconds": 7200.0, "price_per_hour": 2.5, "total": 5.0},
}


def test_single_values_have_names_and_lists_stay_out() -> None:
    values = report.flat(DONE)
    assert values["test/accuracy"] == 0.75
    assert values["settings/train/epochs"] == 1
    assert not [name for name in values if "confusion" in name or "ci95" in name]


def test_the_sentence() -> None:
    assert report.sentence(DONE) == "Test accuracy 0.7500 (3 of 4 images, 95 % interval 0.300 to 0.950)."


@pytest.mark.parametrize(("text", "after"), [("abc\n", "+abc"), ("unknown\n", ""), ("", ""), (None, "")])
def test_the_version_names_the_revision_that_an_image_was_made_of(tmp_path: Path, text: str | None, after: str) -> None:
    path = tmp_path / "REVISION"
    if text is not None:
        path.write_text(text)
    assert report.code_version(path) == f"{inat_job.__version__}{after}"


def test_the_page_shows_what_is_there_and_runs_nothing(tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    plot.write_bytes(b"png")
    page = html.page(DONE, [plot])
    assert "<b>run</b>" not in page
    assert "&lt;b&gt;run&lt;/b&gt;" in page
    assert "A &amp; B" in page
    assert "0.667" in page
    assert 'src="data:image/png;base64,cG5n"' in page
    assert "http" not in page
    assert "1,234.5 images a second. It took 7,200 device-seconds, which cost 5.0000 at 2.5 an hour." in page


def test_what_is_not_known_is_not_on_the_page() -> None:
    page = html.page(DONE | {"throughput": {"train_images_per_s": None}, "cost": report.cost(1, 60.0, None)}, [])
    assert "It took 60 device-seconds." in page
    assert "images a second" not in page


def test_the_cost_is_of_all_devices_and_only_known_with_a_price() -> None:
    assert report.cost(2, 1800.0, 3.0) == {"device_seconds": 3600.0, "price_per_hour": 3.0, "total": 3.0}
    assert report.cost(1, 1800.0, None) == {"device_seconds": 1800.0, "price_per_hour": None, "total": None}
    assert report.cost(1, 1800.0, 0.0)["total"] == 0.0


def test_the_environment_names_versions() -> None:
    section = report.environment("cpu", {"precision": "fp32"})
    assert section["versions"].keys() >= {"python", "torch", "lightning"}
    assert section["execution"] == {"precision": "fp32"}
