"""report.html: what the template shows, made of the report, the predictions and the images in plots/."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inat_job.evaluation.dataset_issues import too_weak_for_labels
from inat_job.evaluation.metrics import wilson_interval
from inat_job.evaluation.pictures import Picture
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.reporting import html
from inat_job.reporting.reproduction import changed_settings, command_line, is_test, model_kind
from inat_job.storage.disk import read_json_object

CELLS = "cells"
"""The name of the picture with the images of the cells."""

_MOST_BYTES = 2_100_000
"""Bytes of all images on the page, before base64 makes them a third larger."""

_MATRIX, _CELL, _CLASSES, _PAIRS, _REJECTED = 30, 12, 1000, 10, 100
"""Classes whose confusion matrix is shown, images listed for a cell, rows of classes and of pairs, rejected images."""

Report = Mapping[str, Any]


def render_report(
    report: Report,
    predictions: PredictionTable | None = None,
    pictures: Sequence[Picture] = (),
    prefix: Sequence[str] = (),
) -> str:
    """The page of a report, whichever its version. `prefix` is the words that start this program."""
    report = _complete(report)
    images = _embedded(pictures)
    sheet = _sheet(pictures, images)
    test = predictions.split("test") if predictions is not None else None
    return html.render(
        "report",
        {
            "report": report,
            "test": report["test"],
            "val": report["val"],
            "baseline": report["baseline"],
            "kind": model_kind(report),
            "part": report["part"].upper(),
            "classes": _class_rows(report),
            "left_out": max(0, len(report["test"]["per_class"]) - _CLASSES),
            "matrix": _matrix(report, test, sheet["places"] if sheet else {}),
            "confused": _most_confused(report),
            "pictures": _all_shown(pictures, images, predictions),
            "sheet": sheet,
            "smoothing": report["settings"].get("train", {}).get("label_smoothing"),
            "tested": is_test(report),
            "stages": _stages(report),
            "changed": changed_settings(report),
            "command": command_line(report, prefix),
            "rejected": report["data"]["rejected"][:_REJECTED],
        },
    )


def _complete(report: Report) -> dict[str, Any]:
    """The report with None for what reports of its version lack."""
    lacking = ("started", "finished", "temperature", "baseline", "val", "test_tta", "reuse", "probe", "cost")
    figures = ("balanced_accuracy", "top3_accuracy", "macro_f1", "reliability", "calibrated", "not_in_train")
    return {
        **dict.fromkeys(lacking),
        **report,
        "exports": report.get("exports") or {},
        "test": {**dict.fromkeys(figures), **report["test"]},
        "data": {
            **{"n_train_dropped_per_epoch": 0, "in_both_train_and_test": 0, "skipped": [], "blank": []},
            **{"n_train_per_class": None, "class_weights": None, "test_share": None},
            **report["data"],
        },
        "reuse": {"seconds": None, **report["reuse"]} if report.get("reuse") else None,
    }


def _embedded(pictures: Sequence[Picture]) -> dict[str, str]:
    """Data URIs by name, of as many pictures as fit; the sheet of the cells comes last."""
    left, uris = _MOST_BYTES, {}
    for each in sorted(pictures, key=lambda each: each.name == CELLS):
        data = each.path.read_bytes() if each.path.is_file() else b""
        if 0 < len(data) <= left:
            uris[each.name] = html.data_uri(data, each.path.suffix)
            left -= len(data)
    return uris


def _all_shown(
    pictures: Sequence[Picture], images: Mapping[str, str], predictions: PredictionTable | None
) -> dict[str, dict[str, Any]]:
    """The pictures by name, and behind the mistakes why there is no sheet of label errors, if the model is too weak."""
    shown = {}
    for each in pictures:
        shown[each.name] = {
            **{"title": each.title, "alt": each.alt, "note": each.note},
            **{"source": images.get(each.name), "file": each.path.name},
        }
    if CELLS in shown and "label-errors" not in shown and predictions is not None:
        reason = too_weak_for_labels(predictions.split("val"))
        absent = {"title": "Likely label errors", "alt": "", "note": reason, "source": None, "file": ""}
        names = [name for each in shown for name in ((each, "label-errors") if each == CELLS and reason else (each,))]
        shown = {name: shown.get(name, absent) for name in names}
    shown.pop(CELLS, None)
    return shown


def _sheet(pictures: Sequence[Picture], images: Mapping[str, str]) -> dict[str, Any] | None:
    """The sheet with small images of the cells of the confusion matrix, and where on it each image is, by its id."""
    path = next((each.path for each in pictures if each.name == CELLS and each.name in images), None)
    if path is None:
        return None
    index: dict[str, Any] = {"cells": [], "side": 1} | read_json_object(path.with_suffix(".json"))
    places = {image["id"]: (image["x"], image["y"]) for cell in index["cells"] for image in cell["images"]}
    return {"source": images[CELLS], "side": index["side"], "places": places}


def _class_rows(report: Report) -> list[dict[str, Any]]:
    """The classes in their order; of very many those with the lowest F1."""
    per_class, confusion = list(report["test"]["per_class"].items()), report["test"]["confusion"]
    labels: Sequence[int] = range(len(per_class))
    if len(labels) > _CLASSES:
        labels = sorted(labels, key=lambda label: per_class[label][1]["f1"])[:_CLASSES]
    rows = []
    for label in labels:
        name, each = per_class[label]
        ci = each.get("recall_ci95")
        if ci is None and each["n"]:
            ci = wilson_interval(round(each["recall"] * each["n"]), each["n"])
        mistakes = _mistakes(confusion[label], label)
        times = max(mistakes)
        confused = per_class[mistakes.index(times)][0] if times else ""
        rows.append({"name": name, **each, "ci": ci, "confused": confused, "times": times})
    return rows


def _mistakes(row: Sequence[int], label: int) -> list[int]:
    """A row of the confusion matrix with 0 for what is right."""
    return [*row[:label], 0, *row[label + 1 :]]


def _matrix(report: Report, test: PredictionTable | None, places: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of the confusion matrix, each cell with its images; None for too many classes."""
    confusion, names = report["test"]["confusion"], list(report["test"]["per_class"])
    if len(names) > _MATRIX:
        return None
    return [
        {
            "name": names[true],
            "cells": [
                {
                    "count": count,
                    "shade": _shade(count / max(1, sum(row)), true == column),
                    "true": names[true],
                    "predicted": names[column],
                    "right": true == column,
                    "id": f"cell-{true}-{column}",
                    "images": _images_of(test, true, column, places) if count else [],
                }
                for column, count in enumerate(row)
            ],
        }
        for true, row in enumerate(confusion)
    ]


def _shade(share: float, right: bool) -> str:
    level = 0 if share == 0 else min(4, 1 + int(share * 4))
    return f"{'right' if right else 'wrong'}{level}" if level else ""


def _images_of(
    test: PredictionTable | None, true: int, predicted: int, places: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The images of a cell, those with the largest loss first; `place` is where each is on the sheet, if it is."""
    if test is None:
        return []
    at = np.flatnonzero((test.labels == true) & (test.predicted == predicted))
    chosen = test.take(at[np.argsort(-test.losses[at], kind="stable")][:_CELL])
    return [
        {"id": name, "predicted": float(p[predicted]), "true": float(p[true]), "place": places.get(name)}
        for name, p in zip(chosen.ids, chosen.probabilities, strict=True)
    ]


def _most_confused(report: Report) -> list[dict[str, Any]]:
    """The pairs of classes that are mistaken for each other most often; of equal ones the first."""
    names, found = list(report["test"]["per_class"]), list[tuple[int, int, int]]()
    for true, row in enumerate(report["test"]["confusion"]):
        least, mistakes = (found[-1][0] if len(found) == _PAIRS else 0), _mistakes(row, true)
        if max(mistakes) > least:  # or else no cell is looked at: there may be many millions
            more = [(count, true, column) for column, count in enumerate(mistakes) if count > least]
            found = sorted([*found, *more], key=lambda pair: -pair[0])[:_PAIRS]
    return [{"count": count, "true": names[true], "predicted": names[column]} for count, true, column in found]


def _stages(report: Report) -> list[dict[str, Any]]:
    """Seconds of each stage of the run, and where it is in a bar of 100. Start-up is timed around what comes before."""
    timing, features = report["timing"], (report["reuse"] or {}).get("seconds") or 0.0
    before = timing["pull_s"] + timing["prepare_s"] + features
    seconds = {
        "download": timing["pull_s"],
        "decoding": timing["prepare_s"],
        "features": features,
        "start-up": max(0.0, timing["startup_s"] - before),
        "training": 0.0 if is_test(report) else timing["train_s"],
        "evaluation": timing["test_s"],
        "pictures": timing.get("pictures_s", 0.0),
        "export": timing.get("export_s", 0.0),
    }
    seconds["other"] = max(0.0, timing["total_s"] - sum(seconds.values()))
    whole, at, stages = sum(seconds.values()) or 1.0, 0.0, []
    for colour, (name, each) in enumerate(seconds.items()):
        stages.append({"name": name, "seconds": each, "at": at, "width": 100 * each / whole, "colour": colour})
        at += 100 * each / whole
    return [stage for stage in stages if stage["seconds"]]
