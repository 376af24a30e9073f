"""The progress of a run as its folder shows it: `status` in plain values, for people and for machines."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inat_job.checkpoints.manifest import Manifest, best_of, planned_epochs
from inat_job.errors import Preempted, TransientError
from inat_job.storage.attempts import RUNNING, Attempt, IsGone
from inat_job.storage.disk import shown_number

FINISHED, SILENT, BEGUN = "finished", "silent", "begun"


@dataclass(frozen=True)
class RunSnapshot:
    """The contents of a run's folder at one moment; `heard_s` are the seconds since its last attempt's heartbeat."""

    uri: str
    config: Mapping[str, Any]
    report: Mapping[str, Any] | None
    attempt: Attempt | None
    heard_s: float
    stored: Sequence[Manifest]


def state_of(snapshot: RunSnapshot, is_gone: IsGone) -> str:
    """`finished`, `running`, `silent` (killed, frozen, or cut off), or how the last attempt ended.

    Two snapshots are needed to know that an attempt is alive; in the first one its own clock is believed.
    """
    attempt = snapshot.attempt
    if snapshot.report is not None:
        return FINISHED
    if attempt is None or attempt.why == FINISHED:  # finished without a report: somebody deleted the report
        return BEGUN
    if attempt.why != RUNNING:
        return attempt.why
    return RUNNING if not is_gone(attempt.holder) and snapshot.heard_s < attempt.lease_s else SILENT


def exit_code_of(state: str) -> int:
    """The exit code of the job whose run is in this state, when nobody works on the run any more."""
    if state == FINISHED:
        return 0
    if state == "preempted":
        return Preempted.exit_code
    failed = re.fullmatch(r"failed with code (\d{1,3})", state)
    return int(failed[1]) if failed else TransientError.exit_code


def status_fields(snapshot: RunSnapshot, state: str) -> dict[str, Any]:
    """The JSON object that `status` prints for machines."""
    attempt, newest = snapshot.attempt, snapshot.stored[-1] if snapshot.stored else None
    beat = attempt.progress if attempt else {}
    step = max(_int_or_zero(beat.get("step")), newest.step if newest else 0)
    epochs, per_epoch = _epochs(snapshot.config), _int_or_zero(beat.get("steps_per_epoch"))
    if newest and epochs:
        epochs = planned_epochs(newest, epochs, per_epoch)
    phase, rate = beat.get("phase"), beat.get("images_per_s")
    if not isinstance(rate, int | float):
        rate = newest.images_per_s if newest else None
    return {
        "run_id": snapshot.uri.rpartition("/")[2],
        "run": snapshot.uri,
        "part": snapshot.config.get("part"),
        "state": state,
        "host": attempt.holder.get("host") if attempt and state == RUNNING else None,
        "heard_s": round(snapshot.heard_s, 1) if attempt and _has_heartbeat(attempt, state) else None,
        "phase": FINISHED if state == FINISHED else phase if isinstance(phase, str) else None,
        "epoch": max(_int_or_zero(beat.get("epoch")), newest.epoch if newest else 0),
        "epochs": epochs,
        "step": step,
        "checkpoint": _checkpoint(snapshot.uri, newest),
        "best": _checkpoint(snapshot.uri, best_of(snapshot.stored)),
        "images_per_s": rate,
        "left_s": 0.0 if state == FINISHED else seconds_left(snapshot.config, snapshot.stored, step, per_epoch),
        "test_accuracy": _test_accuracy(snapshot.report),
        "attempts": _attempts(attempt, state),
    }


def seconds_left(config: Mapping[str, Any], stored: Sequence[Manifest], step: int, per_epoch: int = 0) -> float | None:
    """Seconds of training left after `step`, or None where that cannot be estimated yet.

    The estimate needs the number of steps in an epoch, from the lease's holder or from a checkpoint at an epoch's end,
    and a checkpoint trained at the pace of the epochs to come: epochs on cached features are faster than the others.
    Training may end earlier, by --early-stop.
    """
    newest = stored[-1] if stored else None
    ends = (each.step // each.epoch for each in stored if _is_epoch_end(each) and each.epoch)
    per_epoch = per_epoch or next(ends, 0)
    epochs = _epochs(config)
    if newest and newest.ended:
        return 0.0
    if newest is None or not newest.step or not per_epoch or not isinstance(epochs, int):
        return None
    cached = _epochs_on_features(config)
    since = [each for each in stored[:-1] if each.epoch >= cached or cached >= epochs]
    if since:
        pace = (newest.train_s - since[0].train_s) / (newest.step - since[0].step)
    elif cached in (0, epochs):
        pace = newest.train_s / newest.step
    else:
        return None
    end = newest.cuts[-1][1] if newest.cuts else epochs * per_epoch
    left = max(0, end - step) * pace
    limit = _train_setting(config, "max_time")
    if isinstance(limit, int | float):
        left = min(left, max(0.0, limit - newest.train_s - (step - newest.step) * pace))
    return round(left, 1)


def status_lines(fields: Mapping[str, Any]) -> list[str]:
    """The lines that `status` prints for people."""
    texts = {name: line(fields) for name, line in _LINES.items()}
    part = f", Part {fields['part'].upper()}" if fields["part"] else ""
    rows = [f"  {name:<11} {text}" for name, text in texts.items() if text]
    return [f"{fields['run_id']}{part}, in {fields['run']}", *rows, *_attempt_lines(fields["attempts"])]


def _state_line(fields: Mapping[str, Any]) -> str:
    accuracy, heard = fields["test_accuracy"], fields["heard_s"]
    if accuracy is not None:
        return f"{fields['state']}, test accuracy {accuracy:.4f}"
    if fields["state"] == RUNNING:
        return f"running on {fields['host'] or 'a machine'}, last heartbeat {heard:.0f} s ago"
    if fields["state"] == SILENT and heard is not None:
        return f"silent for {format_duration(heard)}"
    return str(fields["state"])


def _work_line(fields: Mapping[str, Any]) -> str:
    if not fields["epochs"]:  # a test, or a run of which nothing else is known
        return fields["phase"] if fields["phase"] and fields["state"] != FINISHED else ""
    trained = [f"epoch {fields['epoch']} of {fields['epochs']} done", f"step {fields['step']}"]
    phase = [fields["phase"]] if fields["phase"] and fields["state"] != FINISHED else []
    return ", ".join([*phase, *trained])


def _checkpoint_line(fields: Mapping[str, Any]) -> str:
    newest, best = fields["checkpoint"], fields["best"]
    if newest is None:
        return "none yet" if fields["epochs"] else ""
    accuracy = "not validated" if newest["val_accuracy"] is None else f"validation {newest['val_accuracy']:.4f}"
    other = f"; best {best['val_accuracy']:.4f} at step {best['step']}" if best and best != newest else ""
    return f"step {newest['step']}, {accuracy}{other}"


def _rate_line(fields: Mapping[str, Any]) -> str:
    return f"{fields['images_per_s']:.0f} images/s" if fields["images_per_s"] else ""


def _time_left_line(fields: Mapping[str, Any]) -> str:
    if fields["state"] == FINISHED:
        return ""
    return "unknown" if fields["left_s"] is None else f"about {format_duration(fields['left_s'])} of training"


_LINES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "state": _state_line,
    "work": _work_line,
    "checkpoint": _checkpoint_line,
    "rate": _rate_line,
    "time left": _time_left_line,
}


def _attempt_lines(attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"  {'attempts' if number == 1 else '':<11} {number}: step {each['started_step']} to {each['ended_step']}, "
        f"{each['why']}"
        for number, each in enumerate(attempts, 1)
    ]


def format_duration(seconds: float) -> str:
    """A duration for people: "40 s", "12 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _attempts(attempt: Attempt | None, state: str) -> list[dict[str, Any]]:
    """All attempts in the form of the report's history, the last one with its present state."""
    if attempt is None:
        return []
    why = attempt.why if attempt.why != RUNNING else state
    return [*map(dict, attempt.earlier), {**attempt.summary(), "why": why}]


def _checkpoint(uri: str, manifest: Manifest | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    names = ("step", "epoch", "val_accuracy")
    return {"uri": f"{uri}/{manifest.name}", **{name: getattr(manifest, name) for name in names}}


def _has_heartbeat(attempt: Attempt, state: str) -> bool:
    """Whether the age of its heartbeat means anything; an attempt whose object is damaged has none."""
    return state == RUNNING or (state == SILENT and bool(attempt.holder))


def _is_epoch_end(manifest: Manifest) -> bool:
    """Whether it was taken at an epoch's end, before its validation or after."""
    return manifest.awaits_validation or manifest.val_accuracy is not None


def _train_setting(config: Mapping[str, Any], field: str) -> Any:
    if config.get("command") == "test":
        return None
    return config.get("settings", {}).get("train", {}).get(field)


def _epochs(config: Mapping[str, Any]) -> Any:
    """The epochs of a run, which are known once it has begun to train; before, those of its settings."""
    return config.get("epochs", _train_setting(config, "epochs"))


def _epochs_on_features(config: Mapping[str, Any]) -> int:
    plan = config.get("reuse")
    return _int_or_zero(plan.get("epochs")) if isinstance(plan, Mapping) else 0


def _test_accuracy(report: Mapping[str, Any] | None) -> float | None:
    test = (report or {}).get("test")
    return shown_number(test.get("accuracy")) if isinstance(test, Mapping) else None


def _int_or_zero(value: Any) -> int:
    return value if isinstance(value, int) else 0
