"""What a mistyped word most likely means."""

import pytest

from inat_job import near_misses
from inat_job.configuration import options_by_key
from inat_job.recipes import RECIPES

FLAGS = {each.name: each.flag for each, _ in options_by_key(RECIPES["b"]()).values()}


@pytest.mark.parametrize(
    ("word", "flag"),
    [
        ("--learning_rate", "--lr"),
        ("--num-train-epochs", "--epochs"),
        ("--img-size", "--image-size"),
        ("--BATCH-SIZE", "--batch-size"),
        ("--batchsize", "--batch-size"),
        ("--weigth-decay", "--weight-decay"),
        ("--data-path", "--data"),
        ("--feature", "--feature-views"),
        ("--dota", "--data"),
        ("--zzz", None),
        ("--filter-organization", None),
    ],
)
def test_option(word: str, flag: str | None) -> None:
    assert near_misses.option(word, FLAGS) == flag


@pytest.mark.parametrize(
    ("word", "command"),
    [("part-a", "parta"), ("PartB", "partb"), ("eval", "test"), ("prepair", "prepare"), ("fly", None)],
)
def test_command(word: str, command: str | None) -> None:
    assert near_misses.command(word, ["parta", "partb", "test", "prepare"]) == command


@pytest.mark.parametrize(
    ("word", "choice"), [("gpu", "cuda"), ("CPU", "cpu"), ("aut", "auto"), ("tpu", None), ("16-mixed", None)]
)
def test_choice(word: str, choice: str | None) -> None:
    assert near_misses.choice(word, ["auto", "cpu", "cuda", "mps"]) == choice


def test_no_synonym_is_an_option() -> None:
    """Of the settings: it would never be reached."""
    names = {each.name for recipe in RECIPES.values() for each, _ in options_by_key(recipe()).values()}
    assert not names & near_misses.SYNONYMS.keys()
    assert not names & near_misses.WITHOUT.keys()
    assert not near_misses.WITHOUT.keys() & near_misses.SYNONYMS.keys()
