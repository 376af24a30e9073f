"""report.json: the result of a run in plain values, built by pure functions. Its schema is report.schema.json."""

import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import inat_job
from inat_job.evaluation.prediction_table import PredictionTable

SCHEMA_VERSION = 2
_REVISION = Path(inat_job.__file__).parents[1] / "REVISION"
"""A file with the commit that the container image was built from; a checkout has none."""

MOST_ROWS, MOST_IMAGES = 2000, 64
"""Rows of the tracker's tables of predictions, without and with the images."""

_PACKAGES = ("torch", "torchvision", "lightning", "numpy", "pillow", "wandb", "boto3", "timm")


def build(**sections: Any) -> dict[str, Any]:
    """The report of a finished run, with its sections in reading order."""
    return {"schema_version": SCHEMA_VERSION, "status": "done", **sections}


def cost(devices: int, wall_s: float, price_per_hour: float | None) -> dict[str, float | None]:
    """The device time of the run, and its cost if the price of one device for an hour is known.

    `wall_s` is the time of this attempt until its report, plus the training of earlier attempts in their checkpoints.
    What else an earlier attempt spent, or lost when it was killed, is not recorded.
    """
    device_seconds = devices * wall_s
    return {
        "device_seconds": round(device_seconds, 3),
        "price_per_hour": price_per_hour,
        "total": None if price_per_hour is None else round(device_seconds / 3600 * price_per_hour, 6),
    }


def environment(device: str, execution: Mapping[str, Any]) -> dict[str, Any]:
    """What the run ran on (versions, device, platform, code), and the settings of its arithmetic."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "device": device,
        "platform": f"{sys.platform} {platform.machine()}",
        "code_version": code_version(_REVISION),
        "execution": dict(execution),
    }


def code_version(revision: Path) -> str:
    """The version of the package, followed by a plus and the commit if the file `revision` has one."""
    try:
        commit = revision.read_text(encoding="utf-8").strip()
    except OSError:
        commit = ""
    return f"{inat_job.__version__}+{commit}" if commit not in ("", "unknown") else inat_job.__version__


def flatten(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report's scalars by path, such as test/accuracy, for the tracker's summary; lists are left out."""
    values: dict[str, Any] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            values.update({f"{name}/{inner}": scalar for inner, scalar in flatten(value).items()})
        elif isinstance(value, str | int | float):
            values[name] = value
    return values


def result_sentence(report: Mapping[str, Any]) -> str:
    """The result in one sentence; a test's names its run, as there may be several."""
    test = report["test"]
    low, high = test["ci95"]
    tta = f" With --tta flip: {report['test_tta']['accuracy']:.4f}." if "test_tta" in report else ""
    name = f"{report['run_id']}: " if report.get("command") == "test" else ""
    return (
        f"{name}Test accuracy {test['accuracy']:.4f} ({test['correct']} of {test['n']} images, "
        f"95 % interval {low:.3f} to {high:.3f}).{tta}"
    )


def result_fields(report: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracies for the log, with the images and the recall of each class."""
    test = report["test"]
    return {
        **{name: test[name] for name in ("accuracy", "ci95", "correct", "n")},
        "val_accuracy": report["val"]["accuracy"] if report["val"] else None,
        "recall": {name: (each["n"], each["recall"]) for name, each in test["per_class"].items()},
    }


def hardest(predictions: PredictionTable, most: int) -> PredictionTable:
    """The test images with the largest losses, these first."""
    test = predictions.split("test")
    return test.take(np.argsort(-test.losses, kind="stable")[:most])


def test_table(test: PredictionTable) -> tuple[list[str], list[list[Any]]]:
    """The columns and rows of the tracker's table of these predictions."""
    names = [[test.classes[label] for label in labels] for labels in (test.labels, test.predicted)]
    rows = zip(test.ids, *names, test.losses.tolist(), test.confidences.tolist(), strict=True)
    return ["id", "label", "predicted", "loss", "confidence"], [list(row) for row in rows]


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
