"""Settings from every layer, with the right precedence, and a clear sentence for each error."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.command_options import LogOptions
from inat_job.configuration import (
    PREPARE_TAKES,
    SWEEP_TAKES,
    TEST_TAKES,
    configure,
    log_options,
    options_by_key,
    unused_variables,
)
from inat_job.errors import UsageError
from inat_job.job_settings import RUN_ID
from inat_job.options import Option, as_text, as_toml, parse, public_uri
from inat_job.recipes import PRESETS, RECIPES

# A new option is a deliberate act: add it here, to the README and, where it is shared, to what relies on it.
FLAGS = set(
    "--data --labels --test-share --val-share --cache-dir "
    "--image-size --eval-crop --max-broken --resident-share --sse-kms-key-id --requester-pays "
    "--anonymous --output --run-id --preset --resume --preflight --force --init-from --checkpoint-minutes "
    "--grace-seconds --lease-seconds --price-per-hour --epochs --max-time --batch-size --accumulate --lr "
    "--weight-decay --warmup --label-smoothing --optimiser --ema --flip --trivial-augment --erase --mixup --cutmix "
    "--mix-until --start-size --test-size --augment --crop-scale --rotation --colour --early-stop --class-weights "
    "--sampling --final --seed --accelerator --precision --pictures --devices --num-nodes --rendezvous-minutes "
    "--min-images-seen --export --sync-batch-norm --compile --deterministic --wandb --wandb-project --wandb-entity "
    "--wandb-tags --wandb-group --wandb-notes --wandb-artifacts --wandb-secret --tracker".split()
)
FLAGS_A = set(
    "--filters --filter-organisation --kernel-sizes --activation --dense --pooling --batch-norm --dropout".split()
)
FLAGS_B = set(
    "--backbone --weights --allow-partial-weights --strategy --last-k --layer-decay --feature-views "
    "--freeze-batch-norm".split()
)


@pytest.mark.parametrize(("part", "own"), [("a", FLAGS_A), ("b", FLAGS_B)])
def test_flags_are_listed(part: str, own: set[str]) -> None:
    flags = [each.flag for each, _ in options_by_key(RECIPES[part]()).values()]
    assert len(flags) == len(set(flags))
    assert set(flags) == FLAGS | own


def test_layer_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        "train.min_images_seen": "file",  # as --epochs says how long it trains
    }


FORMER_B = {"train.min_images_seen": "0", "data.eval_crop": "0.875"}
FORMER_A = {
    "train.min_images_seen": "0",
    "data.eval_crop": "1",
    "train.optimiser": "adamw",
    "train.lr": "0.002",
    "train.weight_decay": "0.05",
    "train.ema": "0",
    "train.flip": "random",
    "train.crop_scale": "0.35",
    "train.erase": "0",
    "train.trivial_augment": "0",
}
"""Part A's defaults before it had Muon; runs of that time are found by them."""


def test_run_contributes_deciding_settings_only() -> None:
    stored = configure("a", {"train.epochs": "7", "run.output": "there", "model.filters": "8"}, [], None).settings
    taken = configure("a", {"train.seed": "1"}, [], None, json.loads(json.dumps(stored.as_dict()))).settings
    assert (taken.train.epochs, taken.model.filters, taken.train.seed, taken.run.output) == (7, (8,), 1, "runs")


def test_option_that_is_off_changes_no_fingerprint_and_an_older_run_lacks_it() -> None:
    """Runs of earlier versions are found again."""
    without = configure("a", FORMER_A, [], None).settings
    later = {key: as_text(each.off[0]) for key, (each, _) in options_by_key(without).items() if each.off}
    assert configure("a", {**FORMER_A, **later}, [], None).settings.fingerprint() == without.fingerprint()
    assert configure("a", {**FORMER_A, "train.ema": "0.9"}, [], None).settings.fingerprint() != without.fingerprint()
    assert later.keys() >= {"train.ema", "data.test_size"}
    older = json.loads(json.dumps(without.as_dict()))
    del older["train"]["ema"]
    made = configure("a", {}, [], None, older)
    assert (made.settings.train.ema, made.sources["train.ema"]) == (0.0, "the run")


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.one_of(_TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.lists(_TEXTS)))
def test_value_in_toml_reads_back(value: Any) -> None:
    for each in (value, tuple(value)) if isinstance(value, list) else (value,):
        assert repr(tomllib.loads(f"value = {as_toml(each)}")["value"]) == repr(value)


def test_printed_text_reads_back(tmp_path: Path) -> None:
    uri = 'a "b" \\ \x7f \U0001f600.zip'
    (tmp_path / "c.toml").write_text(configure("a", {"data.uri": uri}, [], None).text(), encoding="utf-8")
    assert configure("a", {}, [], str(tmp_path / "c.toml")).settings.data.uri == uri


@pytest.mark.parametrize("part", RECIPES)
def test_printed_config_round_trip(part: str, tmp_path: Path) -> None:
    made = configure(part, {"train.max_time": "1h30m", "train.early_stop": "4", "run.run_id": "x"}, [], None)
    file = tmp_path / "c.toml"
    file.write_text(made.text())
    assert tomllib.loads(made.text())["train"]["max_time"] == 5400
    assert configure(part, {}, [], str(file)).settings == made.settings
    assert "max_time = 5400.0  # command line" in made.text()


def test_augmentation_that_a_preset_turns_off_is_refused(tmp_path: Path) -> None:
    quick = {"run.preset": "quick"}
    with pytest.raises(UsageError, match=r"--erase is 0.5, and does nothing without augmentation, .* \(preset quick\)"):
        configure("b", {**quick, "train.erase": "0.5"}, [], None)
    assert configure("b", {**quick, "train.erase": "0.5", "train.augment": "true"}, [], None).settings.train.erase
    assert not configure("b", {**quick, "train.erase": "0"}, [], None).settings.train.erase
    printed = tmp_path / "c.toml"
    printed.write_text(configure("b", quick, [], None).text())
    assert not configure("b", {}, [], str(printed)).settings.train.augment


@pytest.mark.parametrize(
    ("part", "flags", "words"),
    [
        ("a", {"model.filters": "1,2,3,4,5", "model.filter_organisation": "half"}, "--filter-organisation is half"),
        ("b", {"model.last_k": "2"}, "--last-k does nothing with --strategy full"),
        ("b", {"model.strategy": "head", "model.layer_decay": "0.5"}, "--layer-decay does nothing with"),
        ("b", {"model.strategy": "head", "model.freeze_batch_norm": "true"}, "--freeze-batch-norm does nothing with"),
        ("b", {"model.weights": "none", "model.freeze_batch_norm": "true"}, "--weights none has none"),
        ("b", {"model.strategy": "last-k", "model.layer_decay": "0.5"}, "or use gradual or full or lp-ft."),
        ("a", {"data.test_size": "64"}, "--test-size is 64: it must be at least --image-size, 224."),
        ("a", {"train.start_size": "256"}, "--start-size is 256: it must be at most --image-size, 224."),
        (
            "a",
            {"data.test_size": "256", "model.pooling": "flatten"},
            "but with --pooling flatten the network takes",
        ),
        ("a", {"train.start_size": "64", "model.pooling": "flatten"}, "--start-size is 64, but with --pooling flatten"),
        (
            "b",
            {"data.test_size": "256", "model.backbone": "vit_b_16"},
            "with --backbone vit_b_16 the network takes",
        ),
    ],
)
def test_setting_without_effect_is_refused(part: str, flags: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        configure(part, flags, [], None)
    assert words in str(caught.value)


def test_setting_with_effect_is_accepted() -> None:
    assert configure("a", {"model.filter_organisation": "half"}, [], None).settings.model.filters == (32,)
    for flags in ({"model.last_k": "2", "model.strategy": "last-k"}, {"model.layer_decay": "0.5"}):
        configure("b", flags, [], None)


def test_none_unsets_numbers_and_is_a_name_elsewhere() -> None:
    flags = dict.fromkeys(("train.max_time", "train.early_stop", "run.run_id", "run.init_from"), "none")
    made = configure("a", flags, [], None).settings
    assert (made.train.max_time, made.train.early_stop) == (None, None)
    assert (made.run.run_id, made.run.init_from) == ("none", "none")


@pytest.mark.parametrize("part", RECIPES)
def test_empty_value_is_refused(part: str) -> None:
    for key, (each, _) in options_by_key(RECIPES[part]()).items():
        for empty in ("", " "):
            with pytest.raises(UsageError, match=f"{each.flag} is "):
                configure(part, {key: empty}, [], None)


@pytest.mark.parametrize(
    "text",
    [
        '["train"]',
        "3",
        "null",
        '{"train": 3}',
        '{"train": {"lr": true}}',
        '{"train": {"max_time": true}}',
        '{"train": {"epochs": 1.5}}',
        '{"train": {"epochs": null}}',
        '{"train": {"lr": {"peak": 1}}}',
        '{"model": {"filters": [4.7]}}',
        '{"model": {"filters": [true]}}',
        '{"data": {"uri": null}}',
        '{"data": {"uri": ["x.zip"]}}',
        '{"run": {"run_id": 7}}',
    ],
)
def test_config_file_value_of_wrong_type(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(UsageError):
        configure("a", {}, [], str(file))


def test_config_file_null_unsets(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"train": {"max_time": null, "augment": false}, "run": {"run_id": null}}')
    made = configure("a", {}, [], str(file)).settings
    assert (made.train.max_time, made.train.augment, made.run_id.startswith("parta-")) == (None, False, True)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.epochs", "0", "--epochs is 0: it must be at least 1."),
        ("train.epochs", "many", "--epochs is 'many': it must be a whole number."),
        ("train.warmup", "2", "--warmup is 2.0: it must be at least 0 and at most 0.9."),
        ("train.warmup", "nan", "--warmup is nan"),
        ("run.price_per_hour", "inf", "--price-per-hour is inf: it must be a finite number"),
        ("train.max_time", "soon", "--max-time is 'soon': it must be a duration"),
        ("train.accumulate", "3", "--accumulate is 3: it must divide --batch-size"),
        ("train.accelerator", "tpu", "--accelerator is 'tpu': it must be one of auto, cpu, cuda, mps."),
        ("train.devices", "0", "--devices is 0"),
        ("run.run_id", "a/b", "--run-id is 'a/b': use 1 to 64"),
        ("run.run_id", "..", "--run-id is '..'"),
        ("model.filters", "1,2", "--filters has 2 numbers"),
        ("model.filters", "a", "whole numbers separated by commas"),
        ("model.batch_norm", "maybe", "--batch-norm is 'maybe': it must be true or false."),
    ],
)
def test_bad_value_names_flag_and_range(key: str, value: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        configure("a", {key: value}, [], None)
    assert words in str(caught.value)


def test_unknown_key_is_refused_with_near_miss(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[train]\nepoch = 2\n")
    with pytest.raises(UsageError, match=r"train.epoch'; did you mean train.epochs\?"):
        configure("a", {}, [], str(file))
    with pytest.raises(UsageError, match="did you mean train.seed"):
        configure("a", {}, ["train.sed=1"], None)


def test_variable_of_other_part_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INAT_BACKBONE", "resnet18")
    assert configure("a", {}, [], None).settings == RECIPES["a"]()
    assert configure("b", {}, [], None).settings.model.backbone == "resnet18"


def test_unused_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program of ours, of a Service of Kubernetes, and mistyped."""
    ours = dict.fromkeys(("INAT_JOB_SERVICE_HOST", "INAT_TEST_X", "INAT_CHECKPOINT", "INAT_CONFIG", "INAT_QUIET"), "1")
    assert unused_variables({**ours, "INAT_BACKBONE": "x", "INAT_EPOCHS": "2", "PATH": "/"}) == []
    assert unused_variables({"INAT_EPOCH": "2", "INAT_CONFIGURATION": "x", "INAT_GPUS": "2"}) == [
        "The environment variable INAT_CONFIGURATION sets nothing.",
        "The environment variable INAT_EPOCH sets nothing; did you mean INAT_EPOCHS?",
        "The environment variable INAT_GPUS sets nothing; did you mean INAT_DEVICES?",
    ]
    service = {"INAT_PORT": "tcp://10.0.0.1:80", "INAT_PORT_80_TCP_ADDR": "10.0.0.1", "INAT_SERVICE_PORT_HTTP": "80"}
    assert unused_variables(service) == ["INAT_PORT and 2 more set nothing: Kubernetes adds them for a Service."]
    assert unused_variables({"INAT_DATA_PORT": "1"}) == [
        "INAT_DATA_PORT sets nothing: Kubernetes adds them for a Service."
    ]
    monkeypatch.setenv("INAT_EPOCH", "2")
    assert configure("a", {}, [], None).settings == RECIPES["a"]()


def test_log_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_options({}, {}) == LogOptions()
    assert log_options({"log_format": "json"}, {"INAT_LOG_FORMAT": "text"}) == LogOptions(log_format="json")
    assert log_options({"log_format": None, "quiet": None}, {"INAT_VERBOSE": "1"}) == LogOptions(verbose=True)
    assert log_options({"quiet": True}, {"INAT_VERBOSE": "1"}) == LogOptions(quiet=True)
    with pytest.raises(UsageError, match="--log-format is 'yaml'"):
        log_options({}, {"INAT_LOG_FORMAT": "yaml"})


def test_log_options_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = configure("a", {}, [], None).settings
    monkeypatch.setenv("INAT_LOG_FORMAT", "text")
    monkeypatch.setenv("INAT_VERBOSE", "1")
    after = configure("a", {}, [], None).settings
    assert (after, after.fingerprint()) == (before, before.fingerprint())
    assert "log_format" not in json.dumps(after.as_dict())


@pytest.mark.parametrize(
    ("part", "flags", "run_id"),
    [
        ("a", FORMER_A, "parta-dc3d3ed94e32"),
        ("a", {**FORMER_A, "train.compile": "false"}, "parta-dc3d3ed94e32"),
        ("a", {**FORMER_A, "train.compile": "true"}, "parta-b6b9b7359cec"),
        ("b", FORMER_B, "partb-a8cff949f71f"),
        ("b", {**FORMER_B, "train.compile": "true"}, "partb-bd93725f85c4"),
    ],
)
def test_run_ids_of_earlier_versions(part: str, flags: dict[str, str], run_id: str) -> None:
    """Runs begun when --compile could be unset, stored as null, are the same runs now."""
    assert configure(part, flags, [], None).settings.run_id == run_id


def test_null_in_an_earlier_run_is_the_default() -> None:
    stored = json.loads(json.dumps(configure("a", {"train.epochs": "7"}, [], None).settings.as_dict()))
    stored["train"]["compile"] = None
    taken = configure("a", {}, [], None, stored).settings.train
    assert (taken.compile, taken.epochs) == (False, 7)


@pytest.mark.parametrize(("part", "other"), [("a", "strategy"), ("b", "dense")])
def test_command_ignores_settings_of_a_file_without_effect(part: str, other: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[model]\n{other} = "head"\n[train]\nlr = "much"\n[data]\nimage_size = 64\n')
    made = configure(part, {}, [], str(file), taken=PREPARE_TAKES)
    assert made.settings.data.image_size == 64
    assert made.given == {"data.image_size"}
    with pytest.raises(UsageError, match="there is no setting"):
        configure(part, {}, ["model.strateg=head"], None, taken=PREPARE_TAKES)


def test_home_in_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.toml").write_text("[train]\nepochs = 7\n")
    made = configure("a", {"data.cache_dir": "~/cache"}, [], "~/c.toml").settings
    assert (made.train.epochs, made.data.cache_dir) == (7, f"{tmp_path}/cache")
    assert configure("a", {"data.cache_dir": "a/~/b"}, [], None).settings.data.cache_dir == "a/~/b"


@pytest.mark.parametrize("text", ["not toml", "[train\n"])
def test_config_file_unreadable(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match="is not TOML, nor JSON in a"):
        configure("a", {}, [], str(file))
    with pytest.raises(UsageError, match="cannot be read"):
        configure("a", {}, [], str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "text", "twice"),
    [
        ("c.json", '{"train": {"lr": 1, "lr": 2}}', "'lr'"),
        ("c.json", '{"train": {"lr": 1}, "train": {"epochs": 2}}', "'train'"),
        ("c.json", '{"train": {"lr": 1}, "train.lr": 2}', "'train.lr'"),
        ("c.toml", '"train.lr" = 1\n[train]\nlr = 2\n', "'train.lr'"),
    ],
)
def test_config_file_with_a_value_twice(name: str, text: str, twice: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError, match=f"{name} gives {twice} twice: leave one out"):
        configure("a", {}, [], str(file))


@pytest.mark.parametrize(("name", "text"), [("c.json", '{"train": {"lr": 2}}'), ("c.toml", "[train]\nlr = 2\n")])
def test_config_file_with_a_byte_order_mark(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert configure("a", {}, [], str(tmp_path / name)).settings.train.lr == 2.0


def test_config_file_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  lr: 1\n")
    with pytest.raises(UsageError, match=r"c\.yaml, which is not read: write it as --print-config does"):
        configure("a", {}, [], str(file))


def test_run_id_depends_on_deciding_settings_only() -> None:
    def run_id(**flags: str) -> str:
        return configure("a", {key.replace("__", "."): value for key, value in flags.items()}, [], None).settings.run_id

    assert RUN_ID.fullmatch(run_id())
    assert run_id() == run_id(run__output="elsewhere", tracker__mode="off", data__cache_dir="/x")
    others = [run_id(train__seed="1"), run_id(model__dense="7"), run_id(data__uri="demo:"), run_id(train__epochs="3")]
    assert len({run_id(), *others}) == 5
    assert run_id(run__run_id="mine") == "mine"


def test_data_uri_is_shown_without_secrets() -> None:
    uri = "https://user:pass@host/x.zip?X-Amz-Signature=secret#sha256=" + "0" * 64
    made = configure("a", {"data.uri": uri}, [], None)
    assert public_uri(uri) == "https://host/x.zip#sha256=" + "0" * 64
    for text in (made.text(), json.dumps(made.settings.as_dict())):
        assert "secret" not in text
        assert "pass@" not in text
    assert made.settings.data.uri == uri


@pytest.mark.parametrize("key", ["model.weights", "run.init_from", "run.output"])
def test_any_uri_is_shown_without_secrets(key: str) -> None:
    made = configure("b", {key: "https://user:pass@host/x.pth?sig=secret"}, [], None)
    for text in (made.text(), json.dumps(made.settings.as_dict())):
        assert "https://host/x.pth" in text
        assert "secret" not in text
        assert "pass@" not in text


@pytest.mark.parametrize("key", ["data.uri", "model.weights", "run.init_from"])
def test_run_id_ignores_signatures(key: str) -> None:
    def run_id(uri: str) -> str:
        return configure("b", {key: uri}, [], None).settings.run_id

    plain = run_id("https://host/get.zip?id=1")
    assert plain != run_id("https://host/get.zip?id=2")
    for signature in ("X-Amz-Signature=a&X-Amz-Date=b", "sv=1&se=2&sig=3", "Expires=1&AWSAccessKeyId=2&Signature=3"):
        assert run_id(f"https://host/get.zip?id=1&{signature}") == plain
    assert run_id("https://user:pass@host/get.zip?token=3&id=1") == plain


def test_run_id_ignores_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_id(folder: Path, **flags: str) -> str:
        monkeypatch.chdir(folder)
        return configure("b", {key.replace("__", "."): flag for key, flag in flags.items()}, [], None).settings.run_id

    below = tmp_path / "below"
    below.mkdir()
    for key in ("data__uri", "model__weights", "run__init_from"):
        assert run_id(tmp_path, **{key: "./x.pth"}) == run_id(below, **{key: "../x.pth"})
    for name in ({"data__uri": "demo:"}, {"model__weights": "none"}, {"model__weights": "IMAGENET1K_V1"}, {}):
        assert run_id(tmp_path, **name) == run_id(below, **name)
    assert run_id(tmp_path, run__init_from="first") == run_id(below, run__init_from="first")


def test_anchored_data_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = configure("a", {"data.uri": "x.zip"}, [], None).settings
    assert (made.as_dict()["data"]["uri"], made.anchored().data.uri) == ("x.zip", str(tmp_path / "x.zip"))
    assert made.anchored().run_id == made.run_id
    for uri in ("demo:", "https://host/x.zip?a=b"):
        made = configure("a", {"data.uri": uri}, [], None).settings
        assert made.anchored() == made


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 59), st.integers(1, 59))
def test_durations(days: int, hours: int, minutes: int, seconds: int) -> None:
    each = Option("", duration=True)
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse(each, float, f"{days}d{hours}h{minutes}m{seconds}s") == expected
    assert parse(each, float, str(expected)) == expected


@pytest.mark.parametrize("part", PRESETS)
@pytest.mark.parametrize("name", ["quick", "standard", "best"])
def test_preset_decides_by_its_values_alone(part: str, name: str) -> None:
    made = configure(part, {"run.preset": name}, [], None, environment={})
    wanted = PRESETS[part][name]()
    assert made.settings.fingerprint() == wanted.fingerprint()
    assert (wanted == RECIPES[part]()) == (name == "standard")
    changed = [key for key, source in made.sources.items() if source == f"preset {name}"]
    assert bool(changed) == (name != "standard")
    assert made.given == {"run.preset"}
    values = made.settings.by_key()
    spelled = {key: values[key] for key in changed}
    flags = {key: list(value) if isinstance(value, tuple) else value for key, value in spelled.items()}
    assert configure(part, flags, [], None, environment={}).settings.run_id == made.settings.run_id


def test_everything_given_overrides_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[run]\npreset = "quick"\n[train]\nepochs = 7\ncolour = 0.1\n')
    made = configure("a", {}, [], str(file), environment={"INAT_COLOUR": "0.15"})
    assert (made.settings.train.epochs, made.settings.train.colour, made.settings.data.image_size) == (7, 0.15, 64)
    sources = [made.sources[key] for key in ("train.epochs", "train.colour", "data.image_size")]
    assert sources == ["file", "environment", "preset quick"]
    assert "image_size = 64  # preset quick" in made.text()
    assert configure("a", {"run.preset": "best"}, [], str(file), environment={}).settings.data.image_size == 224
    other = configure("a", {}, [], str(file), environment={"INAT_PRESET": "best"})
    assert (other.settings.data.image_size, other.settings.train.epochs) == (224, 7)
    file.write_text(made.text())
    assert configure("a", {}, [], str(file), environment={}).settings == made.settings


@pytest.mark.parametrize(
    ("flags", "least"),
    [
        ({}, 96_000),
        ({"run.preset": "best"}, 288_000),
        ({"train.epochs": "30"}, 0),
        ({"run.preset": "best", "train.epochs": "3"}, 0),
        ({"train.epochs": "3", "train.min_images_seen": "7"}, 7),
        ({"train.min_images_seen": "7"}, 7),
    ],
)
def test_given_epochs_are_the_length(flags: dict[str, str], least: int, tmp_path: Path) -> None:
    """Few images are passed over more often than by default, but not than was asked for."""
    made = configure("a", flags, [], None, environment={})
    assert made.settings.train.min_images_seen == least
    sets = [f"{key}={value}" for key, value in flags.items()]
    assert configure("a", {}, sets, None, environment={}).settings.train.min_images_seen == least
    (file := tmp_path / "c.toml").write_text(made.text())
    assert configure("a", {}, [], str(file), environment={}).settings.train.min_images_seen == least
    over = configure("a", {"train.epochs": "3"}, [], str(file), environment={})
    assert over.settings.train.min_images_seen == 0
    assert "min_images_seen = 0  # command line" in over.text()


def test_trials_of_a_sweep_have_the_given_epochs() -> None:
    assert configure("a", {}, [], None, taken=SWEEP_TAKES, environment={}).settings.train.min_images_seen == 0


def test_run_that_a_command_takes_keeps_its_least() -> None:
    run = json.loads(json.dumps(configure("a", {}, [], None, environment={}).settings.as_dict()))
    taken = configure("a", {"data.uri": "x.zip"}, [], None, run, TEST_TAKES, environment={})
    assert taken.settings.train.min_images_seen == 96_000


@pytest.mark.parametrize("name", ["quik", "", "QUICK"])
def test_wrong_preset_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--preset is '.*': it must be"):
        configure("a", {"run.preset": name}, [], None, environment={})


@pytest.mark.parametrize("part", PRESETS)
def test_preset_says_what_it_costs(part: str) -> None:
    for name, recipe in PRESETS[part].items():
        option = "" if name == "standard" else f" --preset {name}"
        assert f"\n    Command: `python entrypoint.py part{part}{option}`\n" in str(recipe.__doc__)
        assert re.search(r"\n    Expected accuracy: .+\n    Time: .+\n", str(recipe.__doc__)), name


@pytest.mark.parametrize("key", ["train.lr", "model.dropout"])
def test_set_without_effect_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=f"--set {key} does nothing with this command"):
        configure("a", {}, [f"{key}=0.1"], None, taken=PREPARE_TAKES)


ARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:wandb-x"


@pytest.mark.parametrize("mode", ["off", "offline"])
def test_secret_is_refused_where_the_tracker_is_turned_off(mode: str) -> None:
    with pytest.raises(UsageError, match=f"--wandb-secret is given and --wandb is '{mode}', which needs no key"):
        configure("a", {"tracker.mode": mode, "tracker.key_name": ARN}, [], None, environment={})
    made = configure("a", {"tracker.mode": mode}, [], None, environment={"INAT_WANDB_SECRET": ARN})
    assert (made.settings.tracker.mode, made.settings.tracker.key_name) == (mode, ARN)
