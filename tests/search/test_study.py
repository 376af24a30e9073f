"""Sampler and pruner: the same points after a restart, conditional axes, and what each pruner stops."""

import sys
from collections.abc import Mapping
from types import MappingProxyType

import optuna
import pytest

from inat_job.configuration import configure
from inat_job.errors import UsageError
from inat_job.recipes import RECIPES
from inat_job.search.space import PART_A, Axis, Value, default_point, one_of, real
from inat_job.search.study import PerTrialSampler, Search, draw, make_pruner, open_study
from inat_job.search.trials import Trials

optuna.logging.set_verbosity(optuna.logging.WARNING)


def study(
    seed: int = 0,
    kind: str = "tpe",
    storage: optuna.storages.BaseStorage | None = None,
    first: Mapping[str, Value] = MappingProxyType({}),
) -> optuna.Study:
    sampler = PerTrialSampler(kind, seed, first)
    return optuna.create_study(
        study_name="s", storage=storage, sampler=sampler, direction="maximize", load_if_exists=True
    )


def value(point: dict) -> float:
    return -abs(point["train.lr"] - 3e-3) - (point["model.activation"] != "gelu")


def points(each: optuna.Study, count: int) -> list[dict]:
    drawn = []
    for _ in range(count):
        trial = each.ask()
        drawn.append(draw(trial, PART_A))
        each.tell(trial, value(drawn[-1]))
    return drawn


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_restarted_search_draws_the_same_points(kind: str) -> None:
    whole = points(study(kind=kind), 14)
    storage = optuna.storages.InMemoryStorage()
    parts = [point for count in (3, 9, 2) for point in points(study(kind=kind, storage=storage), count)]
    assert parts == whole
    assert points(study(seed=1, kind=kind), 14) != whole


def test_settings_without_effect_are_not_drawn() -> None:
    space = {"a": one_of("x", "y"), "b": Axis(low=0.0, high=1.0, only_with=("a", ("x",)))}
    each = study()
    for _ in range(30):
        trial = each.ask()
        point = draw(trial, space)
        assert ("b" in point) == (point["a"] == "x")
        each.tell(trial, 0.0)


def test_first_trial_is_the_default() -> None:
    default = default_point(RECIPES["a"](), PART_A)
    each = study(first=default)
    assert draw(each.ask(), PART_A) == default
    assert draw(each.ask(), PART_A) != default


def test_default_of_a_first_trial_that_was_lost_is_drawn_late() -> None:
    """TPE would draw all values together by then, from the trials that have ended."""
    default = default_point(RECIPES["a"](), PART_A)
    storage = optuna.storages.InMemoryStorage()
    lost = study(storage=storage, first=default).ask()
    each = study(storage=storage, first=default)
    points(each, 14)
    assert draw(optuna.Trial(each, lost._trial_id), PART_A) == default


def test_search_finds_the_maximum_sooner_than_chance() -> None:
    space = {"train.lr": real(1e-4, 1e-1, log=True), "model.activation": one_of("relu", "gelu", "silu", "mish")}

    def best(kind: str, seed: int) -> float:
        each = study(seed, kind)
        for _ in range(40):
            trial = each.ask()
            each.tell(trial, value(draw(trial, space)))
        return each.best_value

    assert sum(best("tpe", seed) for seed in range(5)) > sum(best("random", seed) for seed in range(5))


@pytest.mark.parametrize(("pruner", "pruned"), [("asha", True), ("median", True), ("none", False)])
def test_pruner_stops_a_bad_trial(pruner: str, pruned: bool) -> None:
    each = optuna.create_study(direction="maximize", pruner=make_pruner(pruner))
    for number in range(6):
        trial = each.ask()
        for epoch in range(1, 10):
            trial.report(0.5 + 0.01 * epoch + 0.001 * number, epoch)
            trial.should_prune()
        each.tell(trial, 0.6)
    trial = each.ask()
    stopped = False
    for epoch in range(1, 10):
        trial.report(0.1, epoch)
        stopped = stopped or trial.should_prune()
    assert stopped == pruned


def test_importances_find_the_setting_that_matters() -> None:
    each = study(kind="random")
    trials = Trials(each, PART_A, lambda values: configure("a", values, [], None, environment={}).settings)
    points(each, 9)
    assert trials.importances() == {}  # too few
    points(each, 41)
    shares = trials.importances()
    assert set(shares) == set(PART_A)
    assert next(iter(shares)) == "model.activation"
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-2)


def test_importances_of_equal_trials() -> None:
    each = study(kind="random")
    trials = Trials(each, PART_A, lambda values: configure("a", values, [], None, environment={}).settings)
    for _ in range(12):
        trial = each.ask()
        draw(trial, PART_A)
        each.tell(trial, 0.5)
    assert all(0.0 <= share <= 1.0 for share in trials.importances().values())


def test_missing_driver_of_a_database_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"driver is not installed \(.*psycopg.*EXTRAS=postgresql"):
        open_study(None, "postgresql://host/name", "s", Search("tpe", "none", 0, {}))
