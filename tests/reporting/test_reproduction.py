"""The command in a report sets what the run had set."""

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import entrypoint
from inat_job.configuration import configure
from inat_job.reporting.reproduction import changed_settings, command_line, is_test
from inat_job.settings import Settings

GIVEN = {
    "a": {
        "model.filters": st.sampled_from(["8", "8,16,32,64,128"]),
        "model.batch_norm": st.booleans(),
        "model.activation": st.sampled_from(["relu", "gelu"]),
    },
    "b": {
        "model.strategy": st.sampled_from(["head", "full"]),
        "model.weights": st.sampled_from(["none", "x y.pth"]),
        "model.backbone": st.sampled_from(["densenet121", "convnext_tiny"]),
    },
}
BOTH = {
    "train.epochs": st.sampled_from(["5", "10", "30"]),
    "train.min_images_seen": st.sampled_from(["0", "70", "96000"]),
    "train.lr": st.sampled_from([1e-6, 0.1]),
    "train.augment": st.booleans(),
    "train.max_time": st.sampled_from([None, 90.0]),
    "data.eval_crop": st.sampled_from(["0.85", "0.9655", "0.875", "1"]),
    "data.uri": st.sampled_from(["a b.zip", "-x.zip", "s3://b/$HOME.zip"]),
    "run.run_id": st.sampled_from([None, "r"]),
    "run.resume": st.sampled_from(["auto", "never"]),
}


def report_of(settings: Settings) -> dict[str, Any]:
    checkpoint = {"uri": f"/runs/{settings.run_id}/checkpoints/6.ckpt"}
    return {"part": settings.part, "run_id": settings.run_id, "settings": settings.as_dict(), "checkpoint": checkpoint}


@pytest.mark.soak
@pytest.mark.parametrize("part", ["a", "b"])
@given(data=st.data())
def test_command_has_the_settings_of_the_run(part: str, data: st.DataObject) -> None:
    flags = data.draw(st.fixed_dictionaries({}, optional=GIVEN[part] | BOTH))
    settings = configure(part, flags, [], None, environment={}).settings
    words = shlex.split(command_line(report_of(settings), ["python", "entrypoint.py"]))
    assert words[:3] == ["python", "entrypoint.py", f"part{part}"]
    name, options = entrypoint._line(words[2:])
    parsed = {key.replace("__", "."): value for key, value in options.items() if "__" in key and value is not None}
    again = configure(part, parsed, [], None, environment={}).settings
    assert (name, again.fingerprint()) == (f"part{part}", settings.fingerprint())
    differing = {each["setting"] for each in changed_settings(report_of(again) | {"settings": again.as_dict()})}
    assert {each["setting"] for each in changed_settings(report_of(settings))} - differing <= {"run.resume"}


def test_command_of_a_test_names_the_checkpoint() -> None:
    report = {
        "part": "a",
        "run_id": "test-r",
        "settings": {},
        "checkpoint": {"uri": "s3://b/runs/r/checkpoints/6.ckpt"},
    }
    assert command_line(report, ["job"]) == "job test --checkpoint s3://b/runs/r/checkpoints/6.ckpt --run-id test-r"


def test_command_of_a_report_tells_a_test() -> None:
    run = report_of(configure("a", {}, [], None, environment={}).settings)
    assert not is_test(run)
    assert is_test(run | {"command": "test"})
    assert not is_test(run | {"command": "train", "checkpoint": {"uri": "elsewhere"}})


def test_unknown_settings_of_another_version_are_left_out() -> None:
    report = {"part": "a", "settings": {"train": {"epochs": 3, "invented": 1}, "old": {"x": 1}}}
    assert [each["setting"] for each in changed_settings(report)] == ["train.epochs"]
