"""What `status` reports, as functions of plain values: a run's state, its fields and lines, and the time left."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.checkpoints.manifest import Manifest
from inat_job.run.progress import (
    RunSnapshot,
    exit_code_of,
    format_duration,
    seconds_left,
    state_of,
    status_fields,
    status_lines,
)
from inat_job.storage.attempts import Attempt

CONFIG = {"part": "a", "settings": {"train": {"epochs": 10}}}
ATTEMPT = Attempt(
    2, 60.0, {"host": "node-1"}, progress={"phase": "train", "step": 55, "epoch": 5, "images_per_s": 80.0}
)


def manifest(step: int, epoch: int, train_s: float, **changes: Any) -> Manifest:
    scored = {"val_accuracy": 0.5 + step / 1000, "val_loss": 1.0, "accuracies": [], "validate": False, "ended": ""}
    values = scored | {"data_digest": "", "split_digest": "", "images_per_s": 70.0} | changes
    return Manifest(step=step, epoch=epoch, train_s=train_s, **values)


def snapshot(**changes: Any) -> RunSnapshot:
    return replace(RunSnapshot("s3://b/runs/r", CONFIG, None, ATTEMPT, 3.0, [manifest(50, 5, 100.0)]), **changes)


def not_gone(holder: Any) -> bool:
    return False


@pytest.mark.parametrize(
    ("changes", "state", "code"),
    [
        ({}, "running", 75),
        ({"heard_s": 61.0}, "silent", 75),
        ({"report": {"status": "done"}}, "finished", 0),
        ({"attempt": None}, "begun", 75),
        ({"attempt": replace(ATTEMPT, why="preempted"), "heard_s": 9e9}, "preempted", 143),
        ({"attempt": replace(ATTEMPT, why="failed with code 65")}, "failed with code 65", 65),
        ({"attempt": replace(ATTEMPT, why="killed")}, "killed", 75),
    ],
)
def test_run_states_and_their_exit_codes(changes: dict[str, Any], state: str, code: int) -> None:
    assert state_of(snapshot(**changes), not_gone) == state
    assert exit_code_of(state) == code


def test_run_of_a_dead_holder_is_silent_despite_a_recent_heartbeat() -> None:
    assert state_of(snapshot(), lambda holder: holder == {"host": "node-1"}) == "silent"


def test_run_without_its_report_is_not_finished() -> None:
    state = state_of(snapshot(attempt=replace(ATTEMPT, why="finished")), not_gone)
    assert (state, exit_code_of(state)) == ("begun", 75)


def test_damaged_attempt_has_no_heartbeat_age() -> None:
    fields = status_fields(snapshot(attempt=Attempt(1, 60.0, {}), heard_s=1.8e9), "silent")
    assert fields["heard_s"] is None
    assert any(line.split() == ["state", "silent"] for line in status_lines(fields))


def test_status_fields_of_a_running_attempt() -> None:
    attempt = replace(ATTEMPT, earlier=[{"started_step": 0, "ended_step": 40, "why": "preempted"}], started_step=40)
    stored = [manifest(40, 4, 80.0, val_accuracy=0.9), manifest(50, 5, 100.0)]
    fields = status_fields(snapshot(attempt=attempt, stored=stored), "running")
    assert (fields["run_id"], fields["phase"], fields["epoch"], fields["epochs"], fields["step"]) == (
        "r",
        "train",
        5,
        10,
        55,
    )
    assert fields["checkpoint"] == {
        "uri": "s3://b/runs/r/checkpoints/50.ckpt",
        "step": 50,
        "epoch": 5,
        "val_accuracy": 0.55,
    }
    assert (fields["best"]["step"], fields["images_per_s"], fields["heard_s"]) == (40, 80.0, 3.0)
    assert [each["why"] for each in fields["attempts"]] == ["preempted", "running"]
    assert fields["left_s"] == 90.0


def test_status_lines_of_a_running_and_a_finished_run() -> None:
    text = "\n".join(status_lines(status_fields(snapshot(), "running")))
    assert "r, Part A, in s3://b/runs/r" in text
    assert "running on node-1, last heartbeat 3 s ago" in text
    assert "train, epoch 5 of 10 done, step 55" in text
    assert "step 50, validation 0.5500" in text
    assert "about 90 s of training" in text
    assert "1: step 0 to 0, running" in text
    done = snapshot(report={"status": "done", "test": {"accuracy": 0.75}})
    assert "finished, test accuracy 0.7500" in "\n".join(status_lines(status_fields(done, "finished")))


def test_time_left_is_unknown_before_an_epoch_is_stored() -> None:
    assert seconds_left(CONFIG, [], 7) is None
    assert seconds_left(CONFIG, [manifest(7, 0, 3.0, val_accuracy=None, val_loss=None)], 9) is None
    assert seconds_left({}, [manifest(50, 5, 100.0)], 50) is None
    assert seconds_left(CONFIG, [], 7, per_epoch=10) is None
    assert seconds_left(CONFIG, [manifest(7, 0, 3.5, val_accuracy=None, val_loss=None)], 10, per_epoch=10) == 45.0


def test_time_left_follows_the_recent_pace_and_the_current_step() -> None:
    fast, slow = manifest(10, 1, 10.0), manifest(20, 2, 40.0)
    assert seconds_left(CONFIG, [slow], 20) == 160.0
    assert seconds_left(CONFIG, [fast, slow], 20) == 240.0
    assert seconds_left(CONFIG, [fast, slow], 30) == 210.0
    within = manifest(25, 2, 55.0, val_accuracy=None, val_loss=None)
    assert seconds_left(CONFIG, [slow, within], 25) == 225.0


def test_time_left_is_limited_by_max_time_and_zero_after_the_end() -> None:
    config = {"settings": {"train": {"epochs": 10, "max_time": 110.0}}}
    assert seconds_left(config, [manifest(50, 5, 100.0)], 50) == 10.0
    assert seconds_left(CONFIG, [manifest(50, 5, 100.0, ended="early stop")], 50) == 0.0


def test_shortened_run_has_fewer_epochs_and_steps() -> None:
    cut = manifest(50, 5, 100.0, cuts=[[20, 60], [40, 65]])
    assert seconds_left(CONFIG, [cut], 50) == 30.0
    beat = replace(ATTEMPT, progress=ATTEMPT.progress | {"steps_per_epoch": 10})
    assert status_fields(snapshot(attempt=beat, stored=[cut]), "running")["epochs"] == 7


def test_run_of_few_images_has_the_epochs_that_it_decided() -> None:
    config = CONFIG | {"epochs": 12}
    assert seconds_left(config, [manifest(20, 2, 40.0)], 20) == 200.0
    assert status_fields(snapshot(config=config), "running")["epochs"] == 12


def test_time_left_ignores_the_pace_of_epochs_on_cached_features() -> None:
    mixed = CONFIG | {"reuse": {"epochs": 4}}
    early = [manifest(20, 2, 2.0), manifest(30, 3, 3.0)]
    assert seconds_left(mixed, early, 30) is None
    assert seconds_left(mixed, [manifest(40, 4, 4.0), manifest(50, 5, 104.0)], 50) == 500.0
    assert seconds_left(CONFIG | {"reuse": {"epochs": 10}}, early, 30) == 7.0


@given(
    st.dictionaries(st.sampled_from(["phase", "step", "epoch", "images_per_s"]), st.none() | st.text() | st.integers()),
    st.sampled_from([{}, {"settings": {}}, CONFIG, {"settings": {"train": {"epochs": "x"}}, "reuse": 3}]),
    st.booleans(),
)
def test_status_accepts_any_heartbeat_and_config(progress: Any, config: Any, stored: bool) -> None:
    attempt = replace(ATTEMPT, progress=progress)
    seen = snapshot(attempt=attempt, config=config, stored=[manifest(50, 5, 100.0)] if stored else [])
    assert status_lines(status_fields(seen, state_of(seen, not_gone)))


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (99, "99 s"), (150, "2 min"), (9000, "2.5 h")])
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
