"""What `--help` and the page of all options say of each option."""

import pytest

from inat_job import option_help
from inat_job.command_options import BenchOptions, LogOptions, PrepareOptions
from inat_job.configuration import options_by_key
from inat_job.option_help import OptionHelp
from inat_job.options import Option
from inat_job.platforms.submission import SubmitOptions
from inat_job.recipes import RECIPES


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("train.epochs", "default: 30 in Part A, 10 in Part B; at least 1"),
        ("train.warmup", "default: 0.1; 0 to 0.9"),
        ("train.max_time", "default: never; at least 1 s"),
        ("model.filters", "default: 32; at least 1"),
        ("model.batch_norm", "default: on"),
        ("model.backbone", "default: resnet50"),
        ("run.run_id", "default: made from the settings that decide the result"),
    ],
)
def test_facts_of_settings(key: str, facts: str) -> None:
    assert option_help.of_settings("train", ["a", "b"])[key].facts == facts


def test_every_setting_has_a_default_and_a_meaning() -> None:
    """None without a value is left unexplained."""
    for part in RECIPES:
        helps = option_help.of_settings(f"part{part}", [part])
        assert set(helps) == set(options_by_key(RECIPES[part]()))
        for key, each in helps.items():
            assert each.meaning[0].isupper() or each.meaning.startswith(("wandb", "torchvision", "AdamW")), key
            assert not each.meaning.endswith("."), key
            assert each.facts.startswith("default: "), key


def test_settings_of_a_run_that_is_tested() -> None:
    helps = option_help.of_settings("test", ["a"])
    assert helps["train.batch_size"] == OptionHelp(
        "INTEGER", "Images per forward pass", "default: the run's; at least 2"
    )
    assert helps["run.run_id"].facts == "default: test- and the run's id"
    assert helps["data.cache_dir"].facts == "default: cache"


@pytest.mark.parametrize(
    ("section", "field", "metavar", "facts"),
    [
        (BenchOptions, "stages", "LIST", "default: all"),
        (BenchOptions, "runs", "INTEGER", "default: 5; at least 1"),
        (BenchOptions, "baseline", "", ""),
        (PrepareOptions, "prune", "[DURATION]", ""),
        (LogOptions, "log_format", "auto|text|json", "default: auto"),
        (SubmitOptions, "timeout", "DURATION", "at least 60 s"),
        (SubmitOptions, "gpus", "INTEGER", "only k8s and batch; default: 1; 0 to 16"),
        (SubmitOptions, "execution_role", "ARN", "only batch"),
    ],
)
def test_options_of_a_command(section: type, field: str, metavar: str, facts: str) -> None:
    found = option_help.of_section(section)[field]
    assert (found.metavar, found.facts) == (metavar, facts)


@pytest.mark.parametrize(
    ("kind", "each", "metavar"),
    [
        (int, Option(""), "INTEGER"),
        (float | None, Option(""), "FLOAT"),
        (str, Option(""), "TEXT"),
        (str | None, Option("", uri=True), "URI"),
        (float, Option("", duration=True), "DURATION"),
        (float, Option("", metavar="SECONDS"), "SECONDS"),
        (str, Option("", choices=("x", "y")), "x|y"),
        (tuple[int, ...], Option(""), "LIST"),
        (bool, Option(""), ""),
    ],
)
def test_metavar_is_the_type(kind: object, each: Option, metavar: str) -> None:
    assert option_help.metavar(each, kind) == metavar


def test_groups() -> None:
    assert option_help.group_of("train.lr", "parta", ["a"]) == "Training"
    assert option_help.group_of("train.precision", "test", ["a"]) == "Evaluation"
    assert option_help.group_of("model.dense", "parta", ["a"]) == "Model"
    assert option_help.group_of("model.dense", "bench", ["a", "b"]) == "Model of Part A"
    assert option_help.group_of("model.backbone", "bench", ["a", "b"]) == "Model of Part B"
