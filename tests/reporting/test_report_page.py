"""report.html: what it says, of reports of either version, and that names and pictures cannot break it."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from inat_job.evaluation.pictures import Picture
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.reporting import report_page
from inat_job.reporting.report_page import render_report
from tests.evaluation.made_predictions import drawn_table, table_of
from tests.harness.job_runs import SCHEMA
from tests.reporting.made_reports import REPORT, made_report

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}",
    "</title><svg onload=alert(1)>",
    "line\nbreak\ttab\0",
    "\u202egnp.exe\u2066",
    "x" * 300,
]


class Tags(HTMLParser):
    """The start tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def words(page: str) -> str:
    return " ".join(Tags(page).text.split())


@pytest.fixture
def table() -> PredictionTable:
    return drawn_table(0, 200, 5)


def test_made_reports_have_the_schema(table: PredictionTable) -> None:
    jsonschema.validate(json.loads(json.dumps(made_report(table))), SCHEMA)


def test_page_says_what_the_report_says(table: PredictionTable) -> None:
    report = made_report(table)
    page, test = words(render_report(report, table)), report["test"]
    assert f"Test accuracy: {test['correct']} of 200 images." in page
    assert f"95 % interval {100 * test['ci95'][0]:.1f} to {100 * test['ci95'][1]:.1f} %" in page
    assert "the most frequent class of training, class 0, would reach 10.0 %" in page
    assert "five_block, trained from scratch" in page
    assert "8 for training, 2 for validation, 200 for the test, of 5 classes" in page
    assert "finished 2026-01-02 04:04:05 UTC" in page
    assert "2:00:00 of device time, which cost 5.0000 at 2.5 per hour and device" in page
    assert "Speed: 1,234 images a second" in page
    figure = next(
        attributes for tag, attributes in Tags(render_report(report)).tags if attributes.get("id") == "accuracy"
    )
    assert float(figure["data-value"] or "") == test["accuracy"]


@pytest.mark.parametrize(("epoch", "words_"), [(0, "0 whole epochs"), (1, "1 whole epoch."), (3, "3 whole epochs.")])
def test_checkpoint_is_of_the_epochs_that_it_has_finished(epoch: int, words_: str) -> None:
    page = words(render_report(REPORT | {"checkpoint": {**REPORT["checkpoint"], "epoch": epoch}}))
    assert f"the weights of step 6, after {words_}" in page


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_top_3_is_shown_where_it_says_something(classes: int, shown: bool) -> None:
    table = drawn_table(0, 60, classes)
    assert ("Top-3 accuracy" in render_report(made_report(table), table)) == shown


def test_report_of_version_1_has_a_page() -> None:
    lacking = ("started", "finished", "temperature", "baseline", "reuse", "cost")
    old = {name: value for name, value in REPORT.items() if name not in lacking} | {"schema_version": 1}
    page = words(render_report(old))
    assert "Test accuracy: 3 of 4 images." in page
    assert "Guessing at random would reach 50.0 %" in page
    assert "not recorded by this version of the report" in page


def test_every_name_is_text() -> None:
    """Of classes, files, settings, devices, errors: none becomes a tag or an attribute."""
    names = [*HOSTILE, *(f"{number}" for number in range(2))]
    plain, hostile = (page_tags(each) for each in ([f"n{number}" for number in range(10)], names))
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in hostile.tags]
    assert [set(attributes) for _, attributes in plain.tags] == [set(attributes) for _, attributes in hostile.tags]
    assert not re.search("[\0\u202e\u2066]", hostile.text)
    assert "<script>alert(1)</script>" in hostile.text
    assert r"line\nbreak\ttab\x00" in hostile.text
    assert r"\u202egnp.exe\u2066" in hostile.text


def page_tags(names: list[str]) -> Tags:
    """A page with these names wherever a name can be."""
    table = drawn_table(0, 60, len(names))
    table = replace(table, classes=tuple(names), ids=tuple(f"{names[at % len(names)]}/{at}" for at in range(60)))
    report = made_report(table)
    name = names[0]
    report["data"] |= {"uri": name, "rejected": [{"id": each, "reason": each} for each in names]}
    report["history"] = [{"started_step": 0, "ended_step": 6, "why": name}]
    report["settings"] = {"train": {"epochs": name}, name: {name: name}}
    report["environment"] = {**report["environment"], "device": name, "execution": {name: name}}
    report["reuse"] = {"views": 1, "epochs": 1, "at": name}
    return Tags(render_report(report, table))


def test_page_forbids_requests_and_all_scripts_but_its_own(table: PredictionTable) -> None:
    page = render_report(made_report(table), table)
    policy = next(a["content"] or "" for tag, a in Tags(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "url(" not in inner
        assert "http" not in inner
    sources = [a for _, a in Tags(page).tags if "src" in a or "style" in a or any(name.startswith("on") for name in a)]
    assert sources == []


@pytest.mark.parametrize(("url", "links"), [("https://wandb.ai/x", 1), ("javascript:alert(1)", 0), (None, 0)])
def test_trackers_address_is_a_link_only_to_the_web(url: str | None, links: int) -> None:
    page = render_report(REPORT | {"tracker": {"mode": "online", "run_id": "r", "url": url}})
    assert len([a for tag, a in Tags(page).tags if tag == "a" and a["href"] == url]) == links
    assert page.count('href="javascript') == 0


def test_cell_lists_its_images_by_loss() -> None:
    logits = np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [9.0, 0.0]])
    table = table_of(logits, [0, 0, 0, 1], ["a", "b"])
    page = render_report(made_report(table), table)
    cell = page.partition('id="cell-0-0"')[2].partition("</div>")[0]
    assert re.findall(r"test/\d+", cell) == ["test/0001", "test/0000"]
    assert "Wrong: 1 of b predicted as a" in words(page)
    assert 'popovertarget="cell-1-1"' not in page, "an empty cell opens nothing"


def test_without_predictions_cells_are_no_buttons(table: PredictionTable) -> None:
    page = render_report(made_report(table))
    assert "popovertarget" not in page
    assert "Confusion matrix" in page


@pytest.mark.soak
def test_many_classes_have_a_short_page() -> None:
    """No matrix beyond 30 classes; the thousand worst of more."""
    table = drawn_table(0, 3000, 1200)
    page = render_report(made_report(table), table)
    assert "The 200 classes with the highest F1 are left out" in words(page)
    assert 'class="confusion"' not in page
    assert len(page) < 3e6


def test_page_of_a_test_says_nothing_of_the_speed_of_training() -> None:
    checkpoint = REPORT["checkpoint"] | {"uri": "/runs/other/checkpoints/6.ckpt"}
    page = words(render_report(REPORT | {"run_id": "test-r", "checkpoint": checkpoint}, prefix=["job"]))
    assert "job test --checkpoint /runs/other/checkpoints/6.ckpt" in page
    assert "images a second" not in page
    assert "training 1:30" not in page
    assert "says nothing of the time of training" in page


def test_exports_are_listed_with_what_their_check_found() -> None:
    done = {"file": "model.onnx", "sha256": "3" * 64, "bytes": 5_300_000, "max_abs_diff": 2e-5, "accuracy": 0.75}
    page = words(render_report(REPORT | {"exports": {"onnx": done, "pt2": {"error": "<b>no</b> space"}}}))
    assert f"model.onnx5.32.0e-050.7500{'3' * 64}" in page
    assert "pt2failed: <b>no</b> space" in page


def test_most_frequent_mistakes_are_the_largest_cells() -> None:
    table = drawn_table(3, 2000, 12, skill=0.5)
    report = made_report(table)
    cells = [
        (count, true, column)
        for true, row in enumerate(report["test"]["confusion"])
        for column, count in enumerate(row)
        if true != column
    ]
    cells.sort(key=lambda cell: -cell[0])
    found = report_page._most_confused(report)
    assert [(each["count"], each["true"], each["predicted"]) for each in found] == [
        (count, f"class {true}", f"class {column}") for count, true, column in cells[:10]
    ]
    worst = report_page._class_rows(report)[0]
    assert worst["times"] == max(report["test"]["confusion"][0][1:])


def test_frozen_head_owes_the_time_of_its_features() -> None:
    settings = {"model": {"strategy": "head", "weights": "DEFAULT"}, "train": {"epochs": 3}}
    reuse = {"views": 2, "epochs": 3, "at": "flatten", "seconds": 68.0}
    page = words(render_report(REPORT | {"part": "b", "settings": settings, "reuse": reuse}))
    assert "five_block, pretrained, frozen but for its head" in page
    assert "computed once up to the layer flatten, which took 1:08: part of the cost of training" in page
    assert "of cached features: not comparable with a network that sees images" in page
    assert "features 1:08" in page


def test_stages_fill_the_bar_and_count_nothing_twice() -> None:
    stages = report_page._stages(report_page._complete(REPORT))
    seconds = {stage["name"]: stage["seconds"] for stage in stages}
    expected = {"download": 1, "decoding": 2, "start-up": 2, "training": 90, "evaluation": 4, "other": 1}
    assert seconds == pytest.approx(expected)
    assert sum(stage["width"] for stage in stages) == pytest.approx(100)
    assert stages[-1]["at"] + stages[-1]["width"] == pytest.approx(100)


def picture(folder: Path, name: str, size: int = 4, suffix: str = ".png") -> Picture:
    path = folder / f"{name}{suffix}"
    path.write_bytes(b"x" * size)
    return Picture(name, f"Title of {name}", f"Text of {name}", path)


def images_of(page: str) -> list[dict[str, str | None]]:
    return [attributes for tag, attributes in Tags(page).tags if tag == "img"]


def test_pictures_are_embedded_with_their_texts(tmp_path: Path, table: PredictionTable) -> None:
    gone = Picture("gone", "Gone", "Gone", tmp_path / "gone.png")
    pictures = [picture(tmp_path, "grid", suffix=".jpg"), gone, picture(tmp_path, "curves")]
    page = render_report(made_report(table), table, pictures)
    data = base64.b64encode(b"xxxx").decode()
    expected = [("Text of curves", f"data:image/png;base64,{data}"), ("Text of grid", f"data:image/jpeg;base64,{data}")]
    assert [(image["alt"], image["src"]) for image in images_of(page)] == expected
    assert "Title of grid" in page


@pytest.mark.parametrize(("skill", "doubts"), [(0.2, False), (6.0, True)])
def test_weak_model_lists_no_label_errors_and_says_why(tmp_path: Path, skill: float, doubts: bool) -> None:
    table = drawn_table(0, 80, 4, skill)
    table = PredictionTable.joined([table, replace(table, splits=np.full(80, "val"))])
    page = words(render_report(made_report(table.split("test")), table, [picture(tmp_path, "cells", suffix=".jpg")]))
    assert ("cannot cast doubt on labels" in page) != doubts


def test_cells_show_their_images_from_one_sheet(tmp_path: Path) -> None:
    table = table_of(np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), [0, 0, 0], ["a", "b"])
    places = [{"id": "test/0001", "x": 48, "y": 96}, {"id": "unknown", "x": 0, "y": 0}]
    (tmp_path / "cells.json").write_text(json.dumps({"side": 48, "cells": [{"images": places}]}))
    page = render_report(made_report(table), table, [picture(tmp_path, "cells", suffix=".jpg")])
    drawn = [(a.get("viewbox"), a.get("aria-label")) for tag, a in Tags(page).tags if tag == "svg"]
    shown = [(box, text) for box, text in drawn if box and box.endswith("48 48")]
    assert shown == [("48 96 48 48", "test/0001")]
    assert page.count("data:image/jpeg") == 1
    assert images_of(page) == [], "the sheet is no picture of its own"


def test_page_stays_under_three_megabytes(tmp_path: Path, table: PredictionTable) -> None:
    """Pictures that do not fit are named; the sheet of the cells is left out first."""
    sizes = {"cells": 1_500_000, "grid": 1_500_000, "b": 500_000}
    pictures = [picture(tmp_path, name, size) for name, size in sizes.items()]
    page = render_report(made_report(table), table, pictures)
    assert 2e6 < len(page) < 3e6
    assert [image["alt"] for image in images_of(page)] == ["Text of grid", "Text of b"]
    picture(tmp_path, "grid", 2_500_000)
    page = words(render_report(made_report(table), table, pictures))
    assert "This image would make the page too large: it is plots/grid.png in the run's folder." in page
