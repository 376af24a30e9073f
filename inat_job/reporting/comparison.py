"""How runs compare, in plain values made of reports and predictions: accuracies, ratios, tests, settings, cost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inat_job.configuration import options_of_all_parts
from inat_job.evaluation import significance
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.evaluation.significance import PairedCounts
from inat_job.options import Option
from inat_job.reporting.reproduction import is_test
from inat_job.storage.disk import shown_number

CLAIM = 2.0
"""The ratio of the original assignment's claim: fine-tuning doubles the accuracy of training from scratch."""

_PAIRED = (
    "On the same images: Newcombe's interval for paired proportions (1998, method 10), and the delta method for the "
    "logarithm of their ratio (Nam and Blackwelder, 2002)."
)
_UNPAIRED = (
    "On the same images, but without the predictions of both, the tests count as independent, which makes intervals "
    "wider where the runs agree: Newcombe's (1998) of the difference, Katz's (1978) of the ratio."
)
_APART = "As independent tests: Newcombe's interval (1998) of the difference, Katz's (1978) of the ratio."

_WHERE_IT_RAN = ("run.preset", "run.price_per_hour", "train.accelerator", "train.devices", "train.num_nodes")
"""Settings that decide no result, and explain its settings, its time or its cost."""

_ROUNDING = 1e-6
"""Of a share that another program has written."""

_TYPES: Mapping[str, Any] = {
    "part": str,
    "run_id": str,
    "test": {"n": int, "correct": int, "accuracy": float, "ci95": list, "loss": float, "per_class": {}},
    "model": {"name": str, "parameters": int},
    "data": {"uri": str, "digest": str, "split_digest": str, "n_test": int, "classes": list},
    "settings": {},
    "timing": {"total_s": float, "train_s": float},
    "checkpoint": {"uri": str},
    "environment": {"device": str, "code_version": str},
}
"""What a comparison reads of a report of any version."""


@dataclass(frozen=True)
class ComparedRun:
    """A finished run: its address, its report, and its predictions of the test images, if it has kept them."""

    uri: str
    report: Mapping[str, Any]
    predictions: PredictionTable | None = None


def is_report(value: Any) -> bool:
    """Whether a JSON value has what a comparison reads of a finished run's report."""
    if not (_has(value, _TYPES) and value.get("status") == "done" and value["part"] in ("a", "b")):
        return False
    test, settings = value["test"], value["settings"]
    rows = [*test["per_class"].values()]
    return (
        0 <= test["correct"] <= test["n"] > 0
        and abs(test["accuracy"] - test["correct"] / test["n"]) <= _ROUNDING
        and _is_interval(test["ci95"], test["accuracy"])
        and all(_has(row, {"n": int, "recall": float, "f1": float}) for row in rows)
        and all(isinstance(section, dict) for section in settings.values())
        and all(isinstance(name, str) for name in value["data"]["classes"])
        and all(isinstance(value.get(name, {}), dict) for name in ("cost", "reuse") if value.get(name) is not None)
    )


def compare(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Every run, each other one over the base, the settings that differ, and warnings.

    The base is the first run of Part A where there are runs of both parts, and else the first run.
    """
    names, base = _names(runs), _base(runs)
    others = [position for position in range(len(runs)) if position != base]
    pairs = [_pair(runs[base], runs[other], names[base], names[other]) for other in others]
    return {
        "runs": [_row(name, run) for name, run in zip(names, runs, strict=True)],
        "base": names[base],
        "pairs": pairs,
        "settings": _differing(runs),
        "warnings": [warning for pair in pairs for warning in pair["warnings"]],
    }


def _names(runs: Sequence[ComparedRun]) -> list[str]:
    """The run ids, or the addresses of runs that share theirs."""
    seen = Counter(run.report["run_id"] for run in runs)
    return [run.uri if seen[run.report["run_id"]] > 1 else run.report["run_id"] for run in runs]


def _base(runs: Sequence[ComparedRun]) -> int:
    parts = [run.report["part"] for run in runs]
    return parts.index("a") if "a" in parts else 0


def _row(name: str, run: ComparedRun) -> dict[str, Any]:
    report = run.report
    test, cost, val, reuse = report["test"], report.get("cost") or {}, report.get("val"), report.get("reuse") or {}
    macro_f1, tested = shown_number(test.get("macro_f1")), is_test(report)
    return {
        "name": name,
        "uri": run.uri,
        "part": report["part"],
        "model": report["model"]["name"],
        "parameters": report["model"]["parameters"],
        **{key: test[key] for key in ("n", "correct", "accuracy", "ci95", "loss")},
        "macro_f1": _mean_f1(test["per_class"]) if macro_f1 is None else macro_f1,
        "val_accuracy": shown_number(val.get("accuracy")) if isinstance(val, dict) else None,
        "train_s": None if tested else report["timing"]["train_s"],
        "features_s": shown_number(reuse.get("seconds")),
        "total_s": report["timing"]["total_s"],
        "device_seconds": None if tested else shown_number(cost.get("device_seconds")),
        "cost": None if tested else shown_number(cost.get("total")),
        "finished": _text(report.get("finished")),
        "precision": _text(_execution(report).get("precision")),
        "device": report["environment"]["device"],
        "code_version": report["environment"]["code_version"],
    }


def _execution(report: Mapping[str, Any]) -> Mapping[str, Any]:
    found = report["environment"].get("execution")
    return found if isinstance(found, dict) else {}


def _mean_f1(per_class: Mapping[str, Any]) -> float:
    """Macro F1 of a report of version 1: of the classes that have images or right predictions."""
    seen = [row["f1"] for row in per_class.values() if row["n"] or row.get("precision")]
    return sum(seen) / len(seen) if seen else 0.0


def _pair(base: ComparedRun, other: ComparedRun, base_name: str, name: str) -> dict[str, Any]:
    """The other run over the base, on the same images where both have kept their predictions of them."""
    different = _different_tests(base, other)
    counts = None if different else _paired_counts(base, other)
    warnings = [f"{name} and {base_name} were tested on different images ({different})."] if different else []
    tests = (base.report["test"], other.report["test"])
    correct, n = (tests[0]["correct"], tests[1]["correct"]), (tests[0]["n"], tests[1]["n"])
    if counts:
        difference_ci = significance.paired_difference_interval(counts)
        ratio_ci = significance.paired_ratio_interval(counts)
    else:
        difference_ci = significance.difference_interval(correct, n)
        ratio_ci = significance.ratio_interval(correct, n)
    shares = correct[0] / n[0], correct[1] / n[1]
    pair = {
        "run": name,
        "base": base_name,
        "same_images": counts is not None,
        "difference": shares[1] - shares[0],
        "difference_ci95": list(difference_ci),
        "ratio": shares[1] / shares[0] if shares[0] else None,
        "ratio_ci95": list(ratio_ci) if ratio_ci else None,
        "mcnemar": _mcnemar(counts),
        "method": _PAIRED if counts else _APART if different else _UNPAIRED,
        "per_class": _per_class(*tests),
        "warnings": warnings,
    }
    claims = (base.report["part"], other.report["part"]) == ("a", "b") and not different
    subject = _fine_tuning(other.report["settings"].get("model", {}))
    return {**pair, "claim": _claim(pair, subject) if claims and subject else None}


def _different_tests(base: ComparedRun, other: ComparedRun) -> str:
    """Why two test sets are not the same images; empty if nothing says so."""
    one, two = base.report["data"], other.report["data"]
    if sorted(one["classes"]) != sorted(two["classes"]):
        return "other classes"
    if one["digest"] != two["digest"]:
        return "other data"
    if base.report["test"]["n"] != other.report["test"]["n"]:
        return f"{base.report['test']['n']} and {other.report['test']['n']}"
    if base.predictions and other.predictions and _answers(base.predictions)[0] != _answers(other.predictions)[0]:
        return "other names or labels"
    return ""


def _answers(table: PredictionTable) -> tuple[dict[str, str], dict[str, bool]]:
    """The class of each image by its id, and whether it was predicted."""
    right = table.predicted == table.labels
    return (
        {name: table.classes[int(label)] for name, label in zip(table.ids, table.labels, strict=True)},
        {name: bool(each) for name, each in zip(table.ids, right, strict=True)},
    )


def _paired_counts(base: ComparedRun, other: ComparedRun) -> PairedCounts | None:
    if base.predictions is None or other.predictions is None:
        return None
    first, second = _answers(base.predictions)[1], _answers(other.predictions)[1]
    ids = sorted(first)
    return PairedCounts.of(np.array([first[each] for each in ids]), np.array([second[each] for each in ids]))


def _mcnemar(counts: PairedCounts | None) -> dict[str, Any] | None:
    if counts is None:
        return None
    cells = {"both": counts.both, "only_base": counts.first, "only_run": counts.second, "none": counts.none}
    return {**cells, "p": significance.mcnemar_p(counts)}


def _per_class(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Recall of each class in both runs, the largest gain first."""
    rows = [
        {"class": name, "n": row["n"], "base": row["recall"], "run": other["per_class"][name]["recall"]}
        for name, row in base["per_class"].items()
        if name in other["per_class"]
    ]
    rows = [{**row, "difference": row["run"] - row["base"]} for row in rows]
    return sorted(rows, key=lambda row: -row["difference"])


def _fine_tuning(model: Mapping[str, Any]) -> str:
    """What Part B did, as the subject of a sentence; empty where it has fine-tuned nothing pretrained."""
    if model.get("weights", "none") == "none":
        return ""
    ways = {"head": "A frozen network with a new head", "last-k": "Fine-tuning the last stages"}
    return ways.get(str(model.get("strategy")), "Fine-tuning")


def _claim(pair: Mapping[str, Any], subject: str) -> str:
    """The sentence about the claim that fine-tuning doubles the accuracy."""
    interval = pair["ratio_ci95"]
    if interval is None:
        return "One of the accuracies is zero: their ratio says nothing."
    low, high = interval
    found = f"{pair['ratio']:.2f} times the accuracy (95 % interval {low:.2f} to {high:.2f})"
    if low > CLAIM:
        return f"{subject} more than doubles the accuracy: {found}."
    if high < CLAIM:
        return f"{subject} does not double the accuracy: {found}."
    return f"Whether {subject[0].lower()}{subject[1:]} doubles the accuracy is open: {found}."


def _differing(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The settings that are not the same in all runs, first those that all have; "-" where a run does not have one."""
    flat, known = [flat_settings(run.report["settings"]) for run in runs], options_of_all_parts()
    keys = list(dict.fromkeys(key for each in flat for key in each if _is_compared(key, known)))
    rows: list[dict[str, Any]] = [
        {"setting": key, "values": [each.get(key, "-") for each in flat], "shared": all(key in each for each in flat)}
        for key in keys
    ]
    differing = [row for row in rows if any(value != row["values"][0] for value in row["values"])]
    return sorted(differing, key=lambda row: not row["shared"])


def _is_compared(key: str, known: Mapping[str, tuple[Option, Any]]) -> bool:
    """Whether a setting decides results, as one of another version may, or says where the run was."""
    return key not in known or known[key][0].in_fingerprint or key in _WHERE_IT_RAN


def flat_settings(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings in a report by "section.field"."""
    return {f"{name}.{field}": value for name, section in sections.items() for field, value in section.items()}


def _has(value: Any, types: Mapping[str, Any]) -> bool:
    """Whether a value is an object with fields of these types, one inside the other; a float may be whole."""
    if not isinstance(value, dict):
        return False
    for name, wanted in types.items():
        found = value.get(name)
        if isinstance(wanted, Mapping):
            fits = _has(found, wanted)
        elif wanted in (int, float):
            fits = isinstance(found, int | wanted) and shown_number(found) is not None
        else:
            fits = isinstance(found, wanted)
        if not fits:
            return False
    return True


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_interval(value: Sequence[Any], around: float) -> bool:
    """Whether two numbers are the ends of an interval of shares, around one of them."""
    if len(value) != 2 or any(shown_number(each) is None for each in value):
        return False
    low, high = value
    return bool(0 <= low <= around + _ROUNDING and around - _ROUNDING <= high <= 1)
