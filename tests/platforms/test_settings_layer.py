"""settings_layer.py: the settings that a platform suggests, and what takes precedence over them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.configuration import PREPARE_TAKES, TEST_TAKES, configure, options_by_key
from inat_job.errors import UsageError
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.platforms.settings_layer import around, configured, part_of
from inat_job.recipes import RECIPES

ROOT = Path(__file__).parents[2]
OPTIONS = {part: options_by_key(recipe()) for part, recipe in RECIPES.items()}
SAGEMAKER = Platform(
    "SageMaker", run_id="job", grace_s=120.0, data=Path("/in/training"), output=Path("/ml/checkpoints")
)


def asking(**asked: Any) -> Platform:
    return dataclasses.replace(
        SAGEMAKER, hyperparameters={name.replace("__", "-"): value for name, value in asked.items()}
    )


def test_plain_machine_has_no_layer() -> None:
    assert configured(NO_PLATFORM, "a", {}, [], None) == configure("a", {}, [], None)


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"AWS_BATCH_JOB_ID": "abc:1", "AWS_BATCH_JOB_ARRAY_INDEX": "1"}, 'run_id = "abc-1"  # AWS Batch'),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_JOB_NAME": "j"}, 'run_id = "j"  # Kubernetes'),
        ({"AWS_BATCH_JOB_ID": "abc", "INAT_RUN_ID": "mine"}, 'run_id = "mine"  # environment'),
    ],
)
def test_run_id_of_the_platform_and_its_source(environment: dict[str, str], line: str) -> None:
    command = [sys.executable, str(ROOT / "entrypoint.py"), "parta", "--print-config"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert line in done.stdout.splitlines()


def test_platform_settings_are_overridden_by_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = configured(SAGEMAKER, "a", {}, [], None)
    assert (made.settings.run_id, made.settings.run.output) == ("job", "/ml/checkpoints")
    assert (made.settings.data.uri, made.settings.run.grace_seconds) == ("/in/training", 120.0)
    assert set(made.sources.values()) == {"SageMaker"}
    (tmp_path / "c.toml").write_text('[run]\nrun_id = "filed"\noutput = "there"\n')
    monkeypatch.setenv("INAT_OUTPUT", "elsewhere")
    made = configured(asking(grace__seconds="90"), "a", {"data.uri": "demo:"}, [], str(tmp_path / "c.toml"))
    run = made.settings.run
    assert (run.run_id, run.output, run.grace_seconds, made.settings.data.uri) == ("filed", "elsewhere", 90.0, "demo:")


def test_hyperparameters_override_a_file_but_not_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text("[train]\nepochs = 2\nseed = 2\n")
    monkeypatch.setenv("INAT_LR", "0.5")
    place = asking(epochs="3", lr="0.3", warmup="0.3", config=str(tmp_path / "c.toml"))
    made = configured(place, "a", {"train.warmup": "0.4"}, [], None)
    train = made.settings.train
    assert (train.epochs, train.seed, train.lr, train.warmup) == (3, 2, 0.5, 0.4)
    assert made.sources["train.epochs"] == "hyperparameters"
    (tmp_path / "d.toml").write_text("[train]\nseed = 9\n")
    monkeypatch.setenv("INAT_CONFIG", str(tmp_path / "d.toml"))
    assert configured(place, "a", {}, [], None).settings.train.seed == 9


@given(st.sampled_from(list(RECIPES)), st.data())
def test_every_option_is_a_hyperparameter_in_either_spelling(part: str, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(OPTIONS[part])))
    each, _ = OPTIONS[part][key]
    name = "".join(data.draw(st.sampled_from("-_")) if letter == "-" else letter for letter in each.name)
    said = around(dataclasses.replace(NO_PLATFORM, hyperparameters={name: "text"}), part)
    assert dict(said.asked.values) == {key: "text"}


def test_switch_off_by_either_name() -> None:
    for asked in ({"augment": "false"}, {"no-augment": "true"}, {"no_augment": "1"}):
        made = configured(dataclasses.replace(SAGEMAKER, hyperparameters=asked), "a", {}, [], None)
        assert not made.settings.train.augment
    with pytest.raises(UsageError, match="--augment is 'perhaps': it must be true or false"):
        configured(asking(no__augment="perhaps"), "a", {}, [], None)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"epoch": "2"}, "The hyperparameters of Part A: there is no setting 'epoch'; did you mean epochs?"),
        ({"epochs": "many"}, "--epochs is 'many': it must be a whole number."),
        ({"backbone": "resnet18"}, "there is no setting 'backbone'"),
        ({"no-epochs": "2"}, "there is no setting 'no-epochs'"),
        ({"batch-size": "8", "batch_size": "8"}, "set --batch-size twice"),
        ({"augment": "true", "no_augment": "true"}, "set --augment twice"),
        ({"part": "b"}, "The hyperparameter part is 'b' and the command is for Part A"),
    ],
)
def test_invalid_hyperparameters_are_refused(asked: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        configured(dataclasses.replace(SAGEMAKER, hyperparameters=asked), "a", {}, [], None)
    assert words in str(caught.value)


def test_part_by_hyperparameter() -> None:
    assert [part_of(asking(part=part)) for part in RECIPES] == list(RECIPES)
    assert configured(asking(part="b"), "b", {}, [], None).settings.part == "b"
    for place, words in (
        (NO_PLATFORM, "train is for SageMaker only"),
        (SAGEMAKER, "part is missing: set it to a or b"),
        (asking(part="A"), "part is 'A': it must be a or b"),
        (asking(part=["a"]), r"part is \['a'\]"),
    ):
        with pytest.raises(UsageError, match=words):
            part_of(place)


def test_unclear_channels_are_refused_without_data_option() -> None:
    place = dataclasses.replace(SAGEMAKER, data=None, data_problem="The channels are one, two.")
    with pytest.raises(UsageError, match="The channels are one, two"):
        configured(place, "a", {}, [], None)
    assert configured(place, "a", {"data.uri": "demo:"}, [], None).settings.data.uri == "demo:"
    named = dataclasses.replace(place, hyperparameters={"data": "demo:"})
    assert configured(named, "a", {}, [], None).settings.data.uri == "demo:"


def test_other_commands_ignore_unused_hyperparameters() -> None:
    place = asking(part="b", backbone="resnet18", image__size="64")
    made = configured(place, "a", {}, [], None, PREPARE_TAKES)
    assert (made.settings.data.image_size, made.settings.data.uri) == (64, "/in/training")
    assert made.settings.run.run_id is None
    said = around(place, "a", TEST_TAKES)
    assert "run.run_id" not in said.suggested.values
