"""The policy of `status` on plain values: what state a run is in, and how long it still takes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.checkpoints.manifest import Manifest
from inat_job.run.progress import RunSnapshot, code_of, duration, left_s, lines, state_of, told
from inat_job.storage.attempts import Attempt

CONFIG = {"part": "a", "settings": {"train": {"epochs": 10}}}
ATTEMPT = Attempt(
    2, 60.0, {"host": "node-1"}, standing={"phase": "train", "step": 55, "epoch": 5, "images_per_s": 80.0}
)


def manifest(step: int, epoch: int, train_s: float, **changes: Any) -> Manifest:
    scored = {"val_accuracy": 0.5 + step / 1000, "val_loss": 1.0, "accuracies": [], "validate": False, "ended": ""}
    facts = scored | {"data_digest": "", "split_digest": "", "images_per_s": 70.0} | changes
    return Manifest(step=step, epoch=epoch, train_s=train_s, **facts)


def seen(**changes: Any) -> RunSnapshot:
    return replace(RunSnapshot("s3://b/runs/r", CONFIG, None, ATTEMPT, 3.0, [manifest(50, 5, 100.0)]), **changes)


def here(holder: Any) -> bool:
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
def test_states_and_the_codes_that_they_are(changes: dict[str, Any], state: str, code: int) -> None:
    assert state_of(seen(**changes), here) == state
    assert code_of(state) == code


def test_a_holder_known_to_be_gone_is_silent_however_lately_it_was_heard_of() -> None:
    assert state_of(seen(), lambda holder: holder == {"host": "node-1"}) == "silent"


def test_a_run_whose_report_is_gone_is_not_finished() -> None:
    state = state_of(seen(attempt=replace(ATTEMPT, why="finished")), here)
    assert (state, code_of(state)) == ("begun", 75)


def test_nothing_is_said_of_when_an_attempt_was_heard_of_that_cannot_be_read() -> None:
    said = told(seen(attempt=Attempt(1, 60.0, {}), heard_s=1.8e9), "silent")
    assert said["heard_s"] is None
    assert any(line.split() == ["state", "silent"] for line in lines(said))


def test_what_a_machine_is_told() -> None:
    attempt = replace(ATTEMPT, earlier=[{"started_step": 0, "ended_step": 40, "why": "preempted"}], started_step=40)
    stored = [manifest(40, 4, 80.0, val_accuracy=0.9), manifest(50, 5, 100.0)]
    said = told(seen(attempt=attempt, stored=stored), "running")
    assert (said["run_id"], said["phase"], said["epoch"], said["epochs"], said["step"]) == ("r", "train", 5, 10, 55)
    assert said["checkpoint"] == {
        "uri": "s3://b/runs/r/checkpoints/50.ckpt",
        "step": 50,
        "epoch": 5,
        "val_accuracy": 0.55,
    }
    assert (said["best"]["step"], said["images_per_s"], said["heard_s"]) == (40, 80.0, 3.0)
    assert [each["why"] for each in said["attempts"]] == ["preempted", "running"]
    assert said["left_s"] == 90.0


def test_what_a_person_is_told() -> None:
    text = "\n".join(lines(told(seen(), "running")))
    assert "r, Part A, in s3://b/runs/r" in text
    assert "running on node-1, heard of 3 s ago" in text
    assert "train, epoch 5 of 10 done, step 55" in text
    assert "step 50, validation 0.5500" in text
    assert "about 90 s of training" in text
    assert "1: step 0 to 0, running" in text
    done = seen(report={"status": "done", "test": {"accuracy": 0.75}})
    assert "finished, test accuracy 0.7500" in "\n".join(lines(told(done, "finished")))


def test_the_time_left_is_unknown_before_an_epoch_is_stored() -> None:
    assert left_s(CONFIG, [], 7) is None
    assert left_s(CONFIG, [manifest(7, 0, 3.0, val_accuracy=None, val_loss=None)], 9) is None
    assert left_s({}, [manifest(50, 5, 100.0)], 50) is None
    assert left_s(CONFIG, [], 7, per_epoch=10) is None
    assert left_s(CONFIG, [manifest(7, 0, 3.5, val_accuracy=None, val_loss=None)], 10, per_epoch=10) == 45.0


def test_the_time_left_goes_by_the_last_checkpoints_and_the_step_now() -> None:
    fast, slow = manifest(10, 1, 10.0), manifest(20, 2, 40.0)
    assert left_s(CONFIG, [slow], 20) == 160.0
    assert left_s(CONFIG, [fast, slow], 20) == 240.0
    assert left_s(CONFIG, [fast, slow], 30) == 210.0
    within = manifest(25, 2, 55.0, val_accuracy=None, val_loss=None)
    assert left_s(CONFIG, [slow, within], 25) == 225.0


def test_max_time_cuts_it_and_an_end_ends_it() -> None:
    config = {"settings": {"train": {"epochs": 10, "max_time": 110.0}}}
    assert left_s(config, [manifest(50, 5, 100.0)], 50) == 10.0
    assert left_s(CONFIG, [manifest(50, 5, 100.0, ended="early stop")], 50) == 0.0


def test_epochs_on_reused_features_say_nothing_of_the_others() -> None:
    mixed = CONFIG | {"reuse": {"epochs": 4}}
    early = [manifest(20, 2, 2.0), manifest(30, 3, 3.0)]
    assert left_s(mixed, early, 30) is None
    assert left_s(mixed, [manifest(40, 4, 4.0), manifest(50, 5, 104.0)], 50) == 500.0
    assert left_s(CONFIG | {"reuse": {"epochs": 10}}, early, 30) == 7.0


@given(
    st.dictionaries(st.sampled_from(["phase", "step", "epoch", "images_per_s"]), st.none() | st.text() | st.integers()),
    st.sampled_from([{}, {"settings": {}}, CONFIG, {"settings": {"train": {"epochs": "x"}}, "reuse": 3}]),
    st.booleans(),
)
def test_whatever_an_attempt_says_is_told(standing: Any, config: Any, stored: bool) -> None:
    attempt = replace(ATTEMPT, standing=standing)
    what = seen(attempt=attempt, config=config, stored=[manifest(50, 5, 100.0)] if stored else [])
    assert lines(told(what, state_of(what, here)))


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (99, "99 s"), (150, "2 min"), (9000, "2.5 h")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
