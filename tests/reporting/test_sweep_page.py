"""The page of a sweep: what it says, for few and for many trials, and that names cannot break it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import inat_job
from inat_job.recipes import RECIPES
from inat_job.reporting.sweep_page import best_so_far, render_sweep
from inat_job.search.axis_accuracy import by_value
from tests.reporting.test_report_page import HOSTILE, Tags, words

SCHEMA = json.loads((Path(inat_job.__file__).parent / "sweep.schema.json").read_text())
SPACE = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.pooling": {"choices": ["gap", "flatten"]}}
OUTCOMES = ["done", "pruned", "failed", "done", "unfinished", "done"]


def made_report(
    count: int = 6, why: str | None = None, sweep_id: str = "s", seeds: int = 2, final: bool = False
) -> dict[str, Any]:
    """A report of `count` trials, of which some are done; `why` is that of failed ones."""
    trials = []
    for number in range(count):
        outcome = OUTCOMES[number % len(OUTCOMES)]
        epochs = [round(0.1 + 0.01 * number + 0.1 * epoch, 4) for epoch in range(3 if outcome == "done" else 1)]
        trials.append(
            {
                "number": number,
                "run": f"trials/{number}",
                "outcome": outcome,
                "why": why if outcome == "failed" else None,
                "val_accuracy": max(epochs) if outcome == "done" else None,
                "epochs": epochs,
                "seconds": 2.5,
                "values": {"train.lr": 1e-3 * (1 + number), "model.pooling": ["gap", "flatten"][number % 2]},
            }
        )
    best = max((each for each in trials if each["outcome"] == "done"), key=lambda each: each["val_accuracy"])
    settings = json.loads(json.dumps(RECIPES["a"]().as_dict()))
    settings["train"]["lr"], settings["model"]["pooling"] = best["values"]["train.lr"], best["values"]["model.pooling"]
    test = {"n": seeds, "mean": 0.3, "sd": 0.01 if seeds > 1 else None, "lowest": 0.29, "highest": 0.31}
    again = [
        {"seed": each, "run": f"runs/best/seed-{each}", "val_accuracy": None if final else 0.35, "test_accuracy": 0.3}
        for each in range(seeds)
    ]
    return {
        "schema_version": 1,
        "kind": "sweep",
        "status": "done",
        "part": "a",
        "run_id": sweep_id,
        "asked": {
            "trials": count,
            "max_time": None,
            "target": None,
            "patience": None,
            "retrain": seeds,
            "final": final,
        },
        "why": f"all {count} trials have ended",
        "counts": {
            name: [each["outcome"] for each in trials].count(name)
            for name in ("done", "pruned", "failed", "unfinished")
        },
        "epochs": {"spent": sum(len(each["epochs"]) for each in trials), "saved": 2},
        "seconds": {"spent": 2.5 * count, "saved": 61.0},
        "device": "cpu",
        "best": {
            "trial": best["number"],
            "values": best["values"],
            "val_accuracy": best["val_accuracy"],
            "epochs": 3,
            "settings": settings,
        },
        "retrained": again,
        "test": test if seeds else None,
        "importances": {"train.lr": 0.75, "model.pooling": 0.25} if count > 5 else {},
        "space": SPACE,
        "axes": {key: by_value(key, axis, trials) for key, axis in SPACE.items()},
        "trials": trials,
    }


@pytest.mark.parametrize(("count", "seeds"), [(1, 0), (6, 2), (60, 1)])
def test_page_says_what_the_report_says(count: int, seeds: int) -> None:
    report = made_report(count, seeds=seeds)
    jsonschema.validate(report, SCHEMA)
    page = words(render_sweep(report, ["inat-job"]))
    best = report["best"]
    assert f"Validation accuracy of trial {best['trial']}, the best of {count}." in page
    assert f"--lr {best['values']['train.lr']}" in page
    assert f"[train] lr = {best['values']['train.lr']}" in page
    assert ("tested once each: 30.0 %" in page) == bool(seeds)
    assert "of all trials, one device each (cpu); pruning saved about 1:01" in page
    first = report["axes"]["model.pooling"][0]
    interval = f"{100 * first['ci95'][0]:.1f} to {first['ci95'][1]:.1%}" if first["ci95"] else "-"
    assert f"gap{first['n']}{first['mean']:.1%}{interval}".replace("%", " %") in page
    assert ("Too few trials were done to tell" in page) == (not report["importances"])
    tags = Tags(render_sweep(report))
    links = [attributes["href"] for tag, attributes in tags.tags if tag == "a" and "trials/" in str(attributes["href"])]
    done = [each["outcome"] == "done" for each in report["trials"]]
    assert links == [f"trials/{at}/{'report.json' if each else ''}" for at, each in enumerate(done)]
    assert len([tag for tag, _ in tags.tags if tag == "circle"]) == count
    drawn = [each for each in report["trials"] if each["outcome"] in ("done", "pruned")]
    assert len([tag for tag, _ in tags.tags if tag == "polyline"]) == 1 + (len(drawn) if len(drawn) > 1 else 0)


def test_page_says_that_the_best_settings_trained_on_all_images() -> None:
    report = made_report(final=True)
    jsonschema.validate(report, SCHEMA)
    assert "for 3 epochs on all images, those of validation too, and tested once each" in words(render_sweep(report))
    assert "on all images" not in words(render_sweep(made_report()))


@pytest.mark.parametrize("text", HOSTILE)
def test_names_cannot_break_the_page(text: str) -> None:
    plain, page = (Tags(render_sweep(made_report(why=each, sweep_id=each), [each])).tags for each in ("x", text))
    assert [tag for tag, _ in page] == [tag for tag, _ in plain]


def test_page_of_a_search_that_finds_nothing_better_than_the_defaults() -> None:
    report = made_report()
    report["best"]["settings"] = json.loads(json.dumps(RECIPES["a"]().as_dict()))
    page = words(render_sweep(report, ["inat-job"]))
    assert "Best settings All of them are the defaults. As a command: inat-job parta" in page
    assert "As a file" not in page


def test_best_so_far() -> None:
    trials = [
        {"number": number, "val_accuracy": value, "epochs": [0.1] * epochs}
        for number, value, epochs in [(0, 0.2, 3), (1, None, 1), (3, 0.2, 3), (4, 0.4, 3)]
    ]
    assert best_so_far(trials) == [
        {"number": 0, "value": 0.2, "epochs": 3},
        {"number": 4, "value": 0.4, "epochs": 10},
    ]
