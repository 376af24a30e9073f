"""Settings from every layer, with the right precedence, and clear words for what is wrong."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.configuration import all_knobs, configure
from inat_job.errors import UsageError
from inat_job.knobs import Knob, parse
from inat_job.recipes import RECIPES
from inat_job.settings import RUN_ID, public_uri

# A new knob is a deliberate act: add it here, to the README and, where it is shared, to what relies on it.
FLAGS = set(
    "--data --cache-dir --image-size --eval-crop --max-broken --sse-kms-key-id --requester-pays --anonymous --output "
    "--run-id --resume --force --init-from --checkpoint-minutes --grace-seconds --epochs --max-time --batch-size "
    "--accumulate --lr --weight-decay --warmup --label-smoothing --augment --crop-scale --rotation --colour "
    "--early-stop --seed --accelerator --precision --devices --num-nodes --compile --deterministic --wandb "
    "--wandb-project --wandb-entity".split()
)
FLAGS_A = set(
    "--filters --filter-organisation --kernel-sizes --activation --dense --pooling --batch-norm --dropout".split()
)
FLAGS_B = set("--backbone --weights --allow-partial-weights --strategy --last-k --layer-decay".split())


@pytest.mark.parametrize(("part", "own"), [("a", FLAGS_A), ("b", FLAGS_B)])
def test_the_flags_are_these(part: str, own: set[str]) -> None:
    flags = [each.flag for each, _ in all_knobs(RECIPES[part]()).values()]
    assert len(flags) == len(set(flags))
    assert set(flags) == FLAGS | own


def test_each_layer_gives_way_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[train]\nepochs = 2\nseed = 2\nlr = 0.2\nwarmup = 0.2\n")
    monkeypatch.setenv("INAT_SEED", "3")
    monkeypatch.setenv("INAT_LR", "0.3")
    monkeypatch.setenv("INAT_WARMUP", "0.3")
    made = configure("a", {"train.warmup": "0.5"}, ["train.lr=0.4", "train.warmup=0.4"], str(file))
    train = made.settings.train
    assert (train.epochs, train.seed, train.lr, train.warmup, train.batch_size) == (2, 3, 0.4, 0.5, 64)
    assert made.sources == {
        "train.epochs": "file",
        "train.seed": "environment",
        "train.lr": "--set",
        "train.warmup": "command line",
    }


def test_a_run_that_is_taken_up_gives_what_decides_and_no_more() -> None:
    stored = configure("a", {"train.epochs": "7", "run.output": "there", "model.filters": "8"}, [], None).settings
    taken = configure("a", {"train.seed": "1"}, [], None, json.loads(json.dumps(stored.as_dict()))).settings
    assert (taken.train.epochs, taken.model.filters, taken.train.seed, taken.run.output) == (7, (8,), 1, "runs")


@pytest.mark.parametrize("part", RECIPES)
def test_the_printed_configuration_can_be_read_back(part: str, tmp_path: Path) -> None:
    made = configure(part, {"train.max_time": "1h30m", "train.early_stop": "4", "run.run_id": "x"}, [], None)
    file = tmp_path / "c.toml"
    file.write_text(made.text())
    assert tomllib.loads(made.text())["train"]["max_time"] == 5400
    assert configure(part, {}, [], str(file)).settings == made.settings
    assert "max_time = 5400.0  # command line" in made.text()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.epochs", "0", "--epochs is 0: it must be at least 1."),
        ("train.epochs", "many", "--epochs is 'many': it must be a whole number."),
        ("train.warmup", "2", "--warmup is 2.0: it must be at least 0 and at most 0.9."),
        ("train.warmup", "nan", "--warmup is nan"),
        ("train.max_time", "soon", "--max-time is 'soon': it must be a duration"),
        ("train.accumulate", "3", "--accumulate is 3: it must divide --batch-size"),
        ("train.accelerator", "tpu", "--accelerator is 'tpu': it must be one of auto, cpu, cuda, mps."),
        ("train.devices", "2", "--devices is 2"),
        ("run.run_id", "a/b", "--run-id is 'a/b': use 1 to 64"),
        ("run.run_id", "..", "--run-id is '..'"),
        ("model.filters", "1,2", "--filters has 2 numbers"),
        ("model.filters", "a", "whole numbers separated by commas"),
        ("model.batch_norm", "maybe", "--batch-norm is 'maybe': it must be true or false."),
    ],
)
def test_a_bad_value_is_named_with_what_would_do(key: str, value: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        configure("a", {key: value}, [], None)
    assert words in str(caught.value)


def test_unknown_keys_are_refused_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[train]\nepoch = 2\n")
    with pytest.raises(UsageError, match=r"train.epoch'. Did you mean train.epochs\?"):
        configure("a", {}, [], str(file))
    with pytest.raises(UsageError, match="Did you mean train.seed"):
        configure("a", {}, ["train.sed=1"], None)
    monkeypatch.setenv("INAT_EPOCH", "2")
    with pytest.raises(UsageError, match="INAT_EPOCH sets nothing. Did you mean INAT_EPOCHS"):
        configure("a", {}, [], None)


def test_the_other_parts_variables_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INAT_BACKBONE", "resnet18")
    assert configure("a", {}, [], None).settings == RECIPES["a"]()
    assert configure("b", {}, [], None).settings.model.backbone == "resnet18"


@pytest.mark.parametrize("text", ["not toml", "[train\n"])
def test_a_bad_file_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match="neither TOML"):
        configure("a", {}, [], str(file))
    with pytest.raises(UsageError, match="cannot be read"):
        configure("a", {}, [], str(tmp_path / "none"))


def test_the_run_id_depends_on_what_decides_the_result_alone() -> None:
    def run_id(**flags: str) -> str:
        return configure("a", {key.replace("__", "."): value for key, value in flags.items()}, [], None).settings.run_id

    assert RUN_ID.fullmatch(run_id())
    assert run_id() == run_id(run__output="elsewhere", tracker__mode="off", data__cache_dir="/x")
    others = [run_id(train__seed="1"), run_id(model__dense="7"), run_id(data__uri="demo:"), run_id(train__epochs="3")]
    assert len({run_id(), *others}) == 5
    assert run_id(run__run_id="mine") == "mine"


def test_secrets_in_a_uri_are_shown_nowhere() -> None:
    uri = "https://user:pass@host/x.zip?X-Amz-Signature=secret#sha256=" + "0" * 64
    made = configure("a", {"data.uri": uri}, [], None)
    assert public_uri(uri) == "https://host/x.zip#sha256=" + "0" * 64
    for text in (made.text(), json.dumps(made.settings.as_dict())):
        assert "secret" not in text
        assert "pass@" not in text
    assert made.settings.data.uri == uri


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 59), st.integers(1, 59))
def test_durations(days: int, hours: int, minutes: int, seconds: int) -> None:
    each = Knob("", duration=True)
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse(each, float, f"{days}d{hours}h{minutes}m{seconds}s") == expected
    assert parse(each, float, str(expected)) == expected
