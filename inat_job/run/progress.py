"""Where a run stands, of what its folder holds: a policy on plain values, read by people and machines alike."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inat_job.checkpoints.manifest import Manifest, best_of
from inat_job.errors import Preempted, TransientError
from inat_job.storage.attempts import RUNNING, Attempt, IsGone

FINISHED, SILENT, BEGUN = "finished", "silent", "begun"


@dataclass(frozen=True)
class RunSnapshot:
    """What one look at a run's folder found; `heard_s` are the seconds since its last attempt was heard of."""

    uri: str
    config: Mapping[str, Any]
    report: Mapping[str, Any] | None
    attempt: Attempt | None
    heard_s: float
    stored: Sequence[Manifest]


def state_of(seen: RunSnapshot, gone: IsGone) -> str:
    """`finished`, `running`, `silent` (killed, frozen, or cut off), or how the last attempt ended.

    Only who has looked twice knows that an attempt lives; at the first look its clock is believed.
    """
    attempt = seen.attempt
    if seen.report is not None:
        return FINISHED
    if attempt is None or attempt.why == FINISHED:  # the report tells that, and somebody took it away
        return BEGUN
    if attempt.why != RUNNING:
        return attempt.why
    return RUNNING if not gone(attempt.holder) and seen.heard_s < attempt.lease_s else SILENT


def code_of(state: str) -> int:
    """The exit code of the job whose run is in this state, when nobody works on it any more."""
    if state == FINISHED:
        return 0
    if state == "preempted":
        return Preempted.exit_code
    failed = re.fullmatch(r"failed with code (\d{1,3})", state)
    return int(failed[1]) if failed else TransientError.exit_code


def told(seen: RunSnapshot, state: str) -> dict[str, Any]:
    """The object that a machine gets at each look."""
    attempt, newest = seen.attempt, seen.stored[-1] if seen.stored else None
    standing = attempt.standing if attempt else {}
    step = max(_whole(standing.get("step")), newest.step if newest else 0)
    epochs, per_epoch = _setting(seen.config, "epochs"), _whole(standing.get("steps_per_epoch"))
    phase, rate = standing.get("phase"), standing.get("images_per_s")
    if not isinstance(rate, int | float):
        rate = newest.images_per_s if newest else None
    return {
        "run_id": seen.uri.rpartition("/")[2],
        "run": seen.uri,
        "part": seen.config.get("part"),
        "state": state,
        "host": attempt.holder.get("host") if attempt and state == RUNNING else None,
        "heard_s": round(seen.heard_s, 1) if attempt and _is_heard(attempt, state) else None,
        "phase": phase if isinstance(phase, str) else None,
        "epoch": max(_whole(standing.get("epoch")), newest.epoch if newest else 0),
        "epochs": epochs,
        "step": step,
        "checkpoint": _checkpoint(seen.uri, newest),
        "best": _checkpoint(seen.uri, best_of(seen.stored)),
        "images_per_s": rate,
        "left_s": 0.0 if state == FINISHED else left_s(seen.config, seen.stored, step, per_epoch),
        "test_accuracy": _test_accuracy(seen.report),
        "attempts": _attempts(attempt, state),
    }


def left_s(config: Mapping[str, Any], stored: Sequence[Manifest], step: int, per_epoch: int = 0) -> float | None:
    """Seconds of training that are left after `step`, or None where nothing tells them yet.

    That takes the steps of an epoch, from its holder or from a checkpoint of an epoch's end, and a checkpoint at the
    pace of what is to come: epochs that features are reused in are faster. It may end early, by --early-stop.
    """
    newest = stored[-1] if stored else None
    per_epoch = per_epoch or next((each.step // each.epoch for each in stored if _is_end(each) and each.epoch), 0)
    epochs = _setting(config, "epochs")
    if newest and newest.ended:
        return 0.0
    if newest is None or not newest.step or not per_epoch or not isinstance(epochs, int):
        return None
    reused = _reused(config)
    since = [each for each in stored[:-1] if each.epoch >= reused or reused >= epochs]
    if since:
        pace = (newest.train_s - since[0].train_s) / (newest.step - since[0].step)
    elif reused in (0, epochs):
        pace = newest.train_s / newest.step
    else:
        return None
    left = max(0, epochs * per_epoch - step) * pace
    limit = _setting(config, "max_time")
    if isinstance(limit, int | float):
        left = min(left, max(0.0, limit - newest.train_s - (step - newest.step) * pace))
    return round(left, 1)


def lines(said: Mapping[str, Any]) -> list[str]:
    """The same for a person."""
    shown = {name: row(said) for name, row in _ROWS.items()}
    title = f"{said['run_id']}" + (f", Part {said['part'].upper()}" if said["part"] else "") + f", in {said['run']}"
    rows = [f"  {name:<11} {value}" for name, value in shown.items() if value]
    return [title, *rows, *_attempt_lines(said["attempts"])]


def _state_line(said: Mapping[str, Any]) -> str:
    accuracy, heard = said["test_accuracy"], said["heard_s"]
    if accuracy is not None:
        return f"{said['state']}, test accuracy {accuracy:.4f}"
    if said["state"] == RUNNING:
        return f"running on {said['host'] or 'a machine'}, heard of {heard:.0f} s ago"
    if said["state"] == SILENT and heard is not None:
        return f"silent for {duration(heard)}"
    return str(said["state"])


def _work_line(said: Mapping[str, Any]) -> str:
    if not said["epochs"]:  # a test, or a run of which nothing else is known
        return said["phase"] or ""
    trained = [f"epoch {said['epoch']} of {said['epochs']} done", f"step {said['step']}"]
    return ", ".join([*filter(None, [said["phase"]]), *trained])


def _checkpoint_line(said: Mapping[str, Any]) -> str:
    newest, best = said["checkpoint"], said["best"]
    if newest is None:
        return "none yet" if said["epochs"] else ""
    accuracy = "not validated yet" if newest["val_accuracy"] is None else f"validation {newest['val_accuracy']:.4f}"
    other = f"; best {best['val_accuracy']:.4f} at step {best['step']}" if best and best != newest else ""
    return f"step {newest['step']}, {accuracy}{other}"


def _left_line(said: Mapping[str, Any]) -> str:
    if said["state"] == FINISHED:
        return ""
    return "unknown" if said["left_s"] is None else f"about {duration(said['left_s'])} of training"


_ROWS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "state": _state_line,
    "work": _work_line,
    "checkpoint": _checkpoint_line,
    "rate": lambda said: f"{said['images_per_s']:.0f} images/s" if said["images_per_s"] else "",
    "time left": _left_line,
}


def _attempt_lines(attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"  {'attempts' if number == 1 else '':<11} {number}: step {each['started_step']} to {each['ended_step']}, "
        f"{each['why']}"
        for number, each in enumerate(attempts, 1)
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _attempts(attempt: Attempt | None, state: str) -> list[dict[str, Any]]:
    """All attempts as a report tells them, the last one with what is known of it now."""
    if attempt is None:
        return []
    why = attempt.why if attempt.why != RUNNING else state
    return [*map(dict, attempt.earlier), {**attempt.summary(), "why": why}]


def _checkpoint(uri: str, manifest: Manifest | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    names = ("step", "epoch", "val_accuracy")
    return {"uri": f"{uri}/{manifest.name}", **{name: getattr(manifest, name) for name in names}}


def _is_heard(attempt: Attempt, state: str) -> bool:
    """Whether it counts when it was heard of; one that cannot be read has no time."""
    return state == RUNNING or (state == SILENT and bool(attempt.holder))


def _is_end(manifest: Manifest) -> bool:
    """Whether it was taken at an epoch's end, before its validation or after."""
    return manifest.validate or manifest.val_accuracy is not None


def _setting(config: Mapping[str, Any], field: str) -> Any:
    if config.get("command") == "test":
        return None
    return config.get("settings", {}).get("train", {}).get(field)


def _reused(config: Mapping[str, Any]) -> int:
    plan = config.get("reuse")
    return _whole(plan.get("epochs")) if isinstance(plan, Mapping) else 0


def _test_accuracy(report: Mapping[str, Any] | None) -> float | None:
    test = (report or {}).get("test")
    accuracy = test.get("accuracy") if isinstance(test, Mapping) else None
    return accuracy if isinstance(accuracy, int | float) else None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
