"""How runs compare: paired on the same images, with a warning on others, and what counts as a report."""

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.evaluation import significance
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.evaluation.significance import PairedCounts
from inat_job.reporting import html
from inat_job.reporting.comparison import ComparedRun, compare, is_report
from inat_job.reporting.comparison_table import comparison_lines
from tests.evaluation.made_predictions import drawn_table, table_of
from tests.reporting.made_reports import REPORT, made_report
from tests.reporting.test_report_page import HOSTILE


def compared(table: PredictionTable, part: str = "a", run_id: str = "r", kept: bool = True, **more: Any) -> ComparedRun:
    return ComparedRun(f"/runs/{run_id}", made_report(table, part, run_id, **more), table if kept else None)


@pytest.fixture
def weak() -> PredictionTable:
    return drawn_table(0, 300, 5, skill=0.3)


@pytest.fixture
def strong(weak: PredictionTable) -> PredictionTable:
    """On the same images, in another order, which makes no difference."""
    logits = np.random.default_rng(1).standard_normal((300, 5))
    logits[np.arange(300), weak.labels] += 3.0
    table = table_of(logits, weak.labels.tolist())
    return table.take(np.random.default_rng(2).permutation(300))


def test_runs_on_the_same_images_are_paired(weak: PredictionTable, strong: PredictionTable) -> None:
    result = compare([compared(strong, "b", "b"), compared(weak, "a", "a")])
    (pair,) = result["pairs"]
    right = dict(zip(strong.ids, strong.predicted == strong.labels, strict=True))
    counts = PairedCounts.of(weak.predicted == weak.labels, np.array([right[name] for name in weak.ids]))
    assert (pair["base"], pair["run"], pair["same_images"], pair["warnings"]) == ("a", "b", True, [])
    assert pair["mcnemar"]["p"] == significance.mcnemar_p(counts)
    assert pair["mcnemar"]["only_run"] == counts.second > counts.first
    assert pair["ratio_ci95"] == list(significance.paired_ratio_interval(counts) or ())
    assert pair["difference_ci95"] == list(significance.paired_difference_interval(counts))
    assert [row["n"] for row in pair["per_class"]]
    assert json.loads(json.dumps(result)) == result


def test_without_predictions_of_both_the_tests_count_as_independent(
    weak: PredictionTable, strong: PredictionTable
) -> None:
    (pair,) = compare([compared(weak), compared(strong, kept=False, run_id="s")])["pairs"]
    assert (pair["same_images"], pair["mcnemar"], pair["warnings"]) == (False, None, [])
    correct = [int((table.predicted == table.labels).sum()) for table in (weak, strong)]
    assert pair["ratio_ci95"] == list(significance.ratio_interval((correct[0], correct[1]), (300, 300)) or ())
    assert "count as independent" in pair["method"]


def of_other_data(table: PredictionTable) -> ComparedRun:
    made = compared(table, "b", "other")
    return replace(made, report={**made.report, "data": {**made.report["data"], "digest": "f" * 64}})


def of_fewer(table: PredictionTable) -> ComparedRun:
    return compared(table.take(np.arange(299)), "b", "other")


def of_other_names(table: PredictionTable) -> ComparedRun:
    return compared(replace(table, ids=(*table.ids[:-1], "renamed")), "b", "other")


def of_other_labels(table: PredictionTable) -> ComparedRun:
    return compared(replace(table, labels=(table.labels + 1) % 5), "b", "other")


def of_other_classes(table: PredictionTable) -> ComparedRun:
    return compared(replace(table, classes=("x", *table.classes[1:])), "b", "other")


@pytest.mark.parametrize("change", [of_other_data, of_fewer, of_other_names, of_other_labels, of_other_classes])
def test_different_test_sets_are_compared_with_a_warning_only(weak: PredictionTable, change: Any) -> None:
    result = compare([compared(weak), change(weak)])
    (pair,) = result["pairs"]
    assert (pair["same_images"], pair["mcnemar"], pair["claim"]) == (False, None, None)
    assert len(result["warnings"]) == 1
    assert result["warnings"][0].startswith("other and r were tested on different images (")
    assert any("Warning" in line for line in comparison_lines(result))


@pytest.mark.parametrize(
    ("right_a", "right_b", "words"),
    [
        (30, 100, "more than doubles the accuracy: 3.33 times"),
        (60, 90, "does not double the accuracy: 1.50 times"),
        (45, 90, "is open: 2.00 times"),
        (0, 90, "One of the accuracies is zero"),
    ],
)
def test_claim_that_fine_tuning_doubles_the_accuracy(right_a: int, right_b: int, words: str) -> None:
    tables = [
        table_of(np.array([[2.0, 1.0]] * right + [[1.0, 2.0]] * (100 - right)), [0] * 100)
        for right in (right_a, right_b)
    ]
    (pair,) = compare([compared(tables[0], "a"), compared(tables[1], "b", "b")])["pairs"]
    assert words in pair["claim"]
    (pair,) = compare([compared(tables[0], "a"), compared(tables[1], "a", "b")])["pairs"]
    assert pair["claim"] is None, "the claim is about both parts"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"weights": "DEFAULT", "strategy": "full"}, "Fine-tuning does not double"),
        ({"weights": "DEFAULT", "strategy": "last-k"}, "Fine-tuning the last stages does not double"),
        ({"weights": "DEFAULT", "strategy": "head"}, "A frozen network with a new head does not double"),
        ({"weights": "none", "strategy": "full"}, None),
        ({}, None),
    ],
)
def test_claim_names_what_was_trained(weak: PredictionTable, model: dict[str, Any], words: str | None) -> None:
    one = compared(weak, "b", "b")
    other = compared(weak, "b", "b", settings={**one.report["settings"], "model": model})
    (pair,) = compare([compared(weak), other])["pairs"]
    assert (pair["claim"] and pair["claim"].split(" the accuracy:")[0]) == words


def test_page_has_settings_of_one_part_folded_dates_and_precision(weak: PredictionTable) -> None:
    plain = compared(weak, "b", "b")
    settings = {**plain.report["settings"], "train": {**plain.report["settings"]["train"], "augment": False}}
    result = compare([compared(weak), compared(weak, "b", "b", settings=settings)])
    page = html.render("compare", result)
    every, _, partial = page.partition("Settings that not every run has")
    assert "train.epochs" in every
    assert "model.strategy" not in every
    assert "model.strategy" in partial
    assert page.count("2026-01-02 04:04:05 UTC") == page.count(", <bdi>fp32</bdi>") == 2
    assert ["train.augment", "on", "off"] in [line.split() for line in comparison_lines(result)]


def test_base_is_the_first_run_of_part_a(weak: PredictionTable) -> None:
    runs = [compared(weak, part, run_id) for part, run_id in (("b", "x"), ("a", "y"), ("a", "z"))]
    assert (compare(runs)["base"], [pair["run"] for pair in compare(runs)["pairs"]]) == ("y", ["x", "z"])
    assert compare([runs[0], runs[0]])["base"] == "/runs/x", "runs of one name go by their addresses"


def test_settings_that_differ(weak: PredictionTable) -> None:
    one = compared(weak)
    train = {"a_new_one": False, **one.report["settings"]["train"], "lr": 0.5, "devices": 2, "resident_share": 0}
    settings = {
        **one.report["settings"],
        "train": train,
        "run": {**one.report["settings"]["run"], "run_id": "s", "export": ["onnx"], "pictures": False},
        "tracker": {**one.report["settings"]["tracker"], "mode": "off", "group": "g"},
        "storage": {**one.report["settings"]["storage"], "anonymous": True},
    }
    rows = compare([one, compared(weak, run_id="s", settings=settings)])["settings"]
    assert rows == [
        {"setting": "train.lr", "values": [0.003, 0.5], "shared": True},
        {"setting": "train.devices", "values": [None, 2], "shared": True},
        {"setting": "train.a_new_one", "values": ["-", False], "shared": False},
    ]


def test_test_of_a_run_knows_nothing_of_the_cost_of_training(weak: PredictionTable) -> None:
    tested = compared(weak, run_id="t", checkpoint={**REPORT["checkpoint"], "uri": "/runs/r/checkpoints/6.ckpt"})
    rows = compare([compared(weak), tested])["runs"]
    assert [(row["train_s"], row["device_seconds"], row["cost"]) for row in rows] == [(90, 7200, 5), (None,) * 3]
    assert comparison_lines(compare([compared(weak), tested]))[2].split()[-3:] == ["-"] * 3


def test_frozen_head_owes_the_time_of_its_features(weak: PredictionTable) -> None:
    reuse = {"views": 1, "epochs": 1, "at": "x", "seconds": 68.0}
    lines = comparison_lines(compare([compared(weak), compared(weak, "b", "b", reuse=reuse)]))
    assert "1:30 + 1:08 features" in lines[2]


def test_every_name_is_text(weak: PredictionTable) -> None:
    classes = [*HOSTILE, "a", "b"]
    table = replace(drawn_table(0, 50, len(classes)), classes=tuple(classes))
    page = html.render("compare", compare([compared(table, run_id=HOSTILE[0]), compared(table, "b", HOSTILE[1])]))
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert "<svg onload" not in page
    assert not set("\0\u202e\u2066") & set(page)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = [each for key in value for each in paths(value[key], (*path, key))] if isinstance(value, dict) else []
    return [path, *inner] if path else inner


@given(st.sampled_from(paths(REPORT)), st.sampled_from([None, [], {}, "", "x", -1, float("nan"), 1e400, True, [1, 2]]))
def test_what_is_a_report_can_be_compared(path: tuple[Any, ...], value: Any) -> None:
    """A damaged report is refused, or harmless: it never ends in a bug."""
    damaged = copy.deepcopy(REPORT)
    inner = damaged
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if is_report(damaged):
        result = compare([ComparedRun("x", REPORT), ComparedRun("y", damaged)])
        comparison_lines(result)
        html.render("compare", result)


@pytest.mark.parametrize("value", [None, [], "x", 1, {}, {"status": "done"}, REPORT | {"status": "running"}])
def test_what_is_no_report(value: Any) -> None:
    assert not is_report(value)
    assert is_report(REPORT)


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 0.99},
        {"correct": 2},
        {"ci95": [0.95, 0.3]},
        {"ci95": [0.8, 0.95]},
        {"ci95": [0.3, 0.7]},
        {"loss": 1e300},
    ],
)
def test_report_that_contradicts_itself_is_none(change: dict[str, Any]) -> None:
    assert not is_report(REPORT | {"test": REPORT["test"] | change})
