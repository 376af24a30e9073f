"""Complete reports: a small one with characters that HTML must escape, and reports of given predictions."""

import json
from typing import Any

from inat_job.evaluation.metrics import split_metrics
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.recipes import RECIPES

REPORT: dict[str, Any] = {
    "schema_version": 2,
    "status": "done",
    "part": "a",
    "run_id": "<b>run</b>",
    "started": "2026-01-02T03:04:05Z",
    "finished": "2026-01-02T04:04:05Z",
    "temperature": 1.0,
    "test": {
        "n": 4,
        "correct": 3,
        "accuracy": 0.75,
        "ci95": [0.3, 0.95],
        "loss": 0.5,
        "ece": 0.1,
        "per_class": {
            "A & B": {"n": 4, "precision": 0.5, "recall": 1.0, "f1": 2 / 3},
            "C": {"n": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0},
        },
        "confusion": [[3, 1], [0, 0]],
    },
    "val": None,
    "baseline": {"class": "A & B", "accuracy": 0.5},
    "model": {"name": "five_block", "parameters": 1234, "trainable_parameters": 1234, "macs": 5678},
    "data": {
        **{"uri": "x.zip", "digest": "0" * 64, "split_digest": "1" * 64, "classes": ["A & B", "C"], "rejected": []},
        **{"n_train": 8, "n_val": 2, "n_test": 4},
    },
    "settings": {"train": {"epochs": 1}},
    "timing": {"pull_s": 1.0, "prepare_s": 2.0, "startup_s": 5.0, "train_s": 90.0, "test_s": 4.0, "total_s": 100.0},
    "throughput": {"train_images_per_s": 1234.5},
    "reuse": None,
    "cost": {"device_seconds": 7200.0, "price_per_hour": 2.5, "total": 5.0},
    "checkpoint": {"uri": "/runs/<b>run</b>/checkpoints/6.ckpt", "sha256": "2" * 64, "epoch": 1, "step": 6},
    "history": [{"started_step": 0, "ended_step": 6, "why": "finished"}],
    "tracker": {"mode": "off", "run_id": None, "url": None},
    "environment": {
        **{"versions": {"python": "3.12"}, "device": "cpu", "platform": "linux x86_64", "code_version": "0.1.0"},
        "execution": {"precision": "fp32"},
    },
}


def made_report(table: PredictionTable, part: str = "a", run_id: str = "r", **sections: Any) -> dict[str, Any]:
    """The report of a run with these predictions of its test images, at the defaults of its part."""
    test = split_metrics(table, 1.0)
    report = {
        **REPORT,
        "part": part,
        "run_id": run_id,
        "test": {**test, "not_in_train": None},
        "baseline": {"class": table.classes[0], "accuracy": 0.1},
        "data": {**REPORT["data"], "classes": list(table.classes), "n_test": len(table)},
        "settings": RECIPES[part]().as_dict(),
        "checkpoint": {**REPORT["checkpoint"], "uri": f"/runs/{run_id}/checkpoints/6.ckpt"},
        **sections,
    }
    return dict(json.loads(json.dumps(report)))
