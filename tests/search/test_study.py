"""Sampler and pruner: the same points after a restart, conditional axes, and what each pruner stops."""

import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import optuna
import pytest

from inat_job.configuration import configure
from inat_job.errors import NoPermissionError, TransientError, UsageError
from inat_job.recipes import RECIPES
from inat_job.search.space import PART_A, Axis, Value, default_point, one_of, real
from inat_job.search.study import PerTrialSampler, draw, make_pruner, open_storage
from inat_job.search.trials import Trials
from tests.search.postgresql import Postgresql, postgresql_server

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def postgresql() -> Iterator[Postgresql]:
    with postgresql_server() as server:
        yield server


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
        open_storage(None, "postgresql://host/name")


def test_server_that_refuses_connections_is_tried_again_and_named() -> None:
    pytest.importorskip("psycopg", reason="needs psycopg")
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}/name"
        with pytest.raises(TransientError) as raised:
            open_storage(None, f"postgresql://me:secretpw@{where}", retries=2)
    sentence = str(raised.value)
    assert sentence.startswith(f"--storage is postgresql://{where}, which does not answer (")
    assert sentence.endswith("despite retries: check that the server runs at this address.")
    assert "secretpw" not in sentence


def test_login_or_database_that_a_server_refuses_is_not_tried_again(postgresql: Postgresql) -> None:
    server, _, name = postgresql.uri.rpartition("/")
    with pytest.raises(NoPermissionError, match=r'refuses the login \(.*role "nobody" does not exist\): check user'):
        open_storage(None, f"{server.replace('postgres@', 'nobody@')}/{name}")
    with pytest.raises(UsageError, match=r'cannot be used \(.*database "other" does not exist\): check the address'):
        open_storage(None, f"{server}/other")


@pytest.mark.parametrize("start", ["sqlite:///", "nosuch://host/", "postgresql://host:port/", ""])
def test_address_that_cannot_be_used_is_named_as_given(start: str, tmp_path: Path) -> None:
    uri = f"{start}{tmp_path}/none/x.db"
    with pytest.raises(UsageError, match=f"--storage is {uri}, which cannot be used .*: check the address"):
        open_storage(None, uri)
