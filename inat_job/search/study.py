"""The study of a search in Optuna: sampler, pruner, and the trials by what became of them.

Optuna is the engine: Akiba et al., Optuna: A Next-generation Hyperparameter Optimization Framework, 2019.
"""

import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from inat_job.errors import JobError, NoPermissionError, TransientError, UsageError, first_line
from inat_job.options import public_uri
from inat_job.search.journal import StoreJournal
from inat_job.search.space import Axis, Space, Value
from inat_job.signals import Stop, never
from inat_job.storage import StorageOptions
from inat_job.storage.retry import RetryableError, with_retries
from inat_job.telemetry.redact import redact

StudyStorage = JournalStorage | RDBStorage

_TRIES = 5
"""Times that a new database is opened while other workers make its tables."""
_CONNECT_S = 10
"""Seconds for a connection to PostgreSQL."""
_LIBPQ = re.compile(r"postgresql(\+psycopg2?)?:")
# What PostgreSQL says of a login or a database that no other try makes right.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|role \S+ does not exist|permission denied"
)
_UNKNOWN = re.compile(r"database \S+ does not exist")


@dataclass(frozen=True)
class Search:
    """How the points of a study are chosen, and which trials are ended early."""

    sampler: str
    pruner: str
    seed: int
    first: Mapping[str, Value]
    """Values of the first trial; what it has no value for is drawn."""


class PerTrialSampler(BaseSampler):
    """A sampler whose random draws depend on the seed and the trial's number alone.

    So a search that was stopped goes on as it would have, and workers that start with one seed draw different points.
    TPE also looks at all results so far, and at which trials still run.
    Trial 0 has the values of `first`. They are not queued, as workers that start at the same moment would do it twice.
    """

    def __init__(self, kind: str, seed: int, first: Mapping[str, Value]) -> None:
        self._kind, self._seed, self._first = kind, seed, first
        self._own: BaseSampler = self._make(0)

    def _make(self, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        if self._kind == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # group: settings that only some trials have
            return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._own = self._make(trial.number)
        self._own.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if trial.number == 0:
            return {}  # each value is drawn, or given, on its own
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._own.sample_relative(study, trial, search_space) if search_space else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if trial.number == 0 and param_name in self._first:
            return self._first[param_name]
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._own.after_trial(study, trial, state, values)


def open_storage(
    journal: StoreJournal | None, database: str | None, stop: Stop = never, retries: int = StorageOptions.retries
) -> StudyStorage:
    """Where a study is stored: in a journal, or in a database, which gets its tables here and no study yet.

    Raises UsageError for a database that cannot be used, as without its driver, NoPermissionError for one that refuses
    the login, TransientError for a server that does not answer despite `retries`, and Preempted.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if journal:
        return JournalStorage(journal)
    return with_retries(lambda: _database(str(database)), retries, str(database), stop)


def open_study(storage: StudyStorage, name: str, search: Search) -> Study:
    """The study `name`, made if there is none."""
    return optuna.create_study(
        study_name=name,
        storage=storage,
        sampler=PerTrialSampler(search.sampler, search.seed, search.first),
        pruner=make_pruner(search.pruner),
        direction="maximize",
        load_if_exists=True,
    )


def _database(uri: str) -> RDBStorage:
    """Raises RetryableError for a server that may answer later, and else as `open_storage`."""
    where = public_uri(uri)
    try:
        return _opened(uri)
    except ImportError as error:  # Optuna's own sentence names no driver
        raise UsageError(
            f"--storage is {where}, whose driver is not installed ({error.__cause__ or error}): pip install it, or for "
            "PostgreSQL build the image with --build-arg EXTRAS=postgresql."
        ) from None
    except (SQLAlchemyError, ValueError, RuntimeError) as error:  # the last for tables of another Optuna
        raise _as_ours(error, uri) from None


def _as_ours(error: Exception, uri: str) -> JobError:
    """The error of ours for a database that cannot be opened: what a server says has no code, only its words."""
    what, reason = f"--storage is {public_uri(uri)}", redact(_reason(error))
    if _REFUSED.search(reason):
        return NoPermissionError(f"{what}, which refuses the login ({reason}): check user and password.")
    if not isinstance(error, OperationalError) or uri.startswith("sqlite") or _UNKNOWN.search(reason):
        return UsageError(f"{what}, which cannot be used ({reason}): check the address.")
    return RetryableError(
        f"{what}, which does not answer ({reason})",
        "check that the server runs at this address",
        is_unresolved=bool(re.search("(resolve|translate) host", reason)),
    )


def _opened(uri: str) -> RDBStorage:
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if _LIBPQ.match(uri) and "connect_timeout" not in uri:  # or it is two minutes for each try
        engine["connect_args"] = {"connect_timeout": _CONNECT_S}
    for _ in range(_TRIES):
        try:
            return RDBStorage(uri, engine_kwargs=engine)
        except (IntegrityError, ProgrammingError):  # another worker has just made the same tables
            time.sleep(1.0)
    return RDBStorage(uri, engine_kwargs=engine)


@contextmanager
def database_errors(database: str | None) -> Iterator[None]:
    """Raise TransientError for a database that fails during a search: all that it holds is there the next time."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        where, reason = public_uri(str(database)), redact(_reason(error))
        raise TransientError(f"--storage is {where}, which fails ({reason}).") from error


def _reason(error: Exception) -> str:
    """The first line of the error below that of Optuna."""
    return first_line(error.__cause__ or error)


def make_pruner(name: str) -> BasePruner:
    """The pruner `asha`, `median` or `none`.

    ASHA is that of Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020.
    """
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return MedianPruner(n_startup_trials=5, n_warmup_steps=1) if name == "median" else NopPruner()


def why_pruned(pruner: BasePruner, epoch: int, accuracy: float) -> str:
    """Why a trial was pruned after an epoch with a validation accuracy."""
    least = "the best third" if isinstance(pruner, SuccessiveHalvingPruner) else "the median"
    return f"below {least} of the trials at epoch {epoch}, with {accuracy:.4f}"


def draw(trial: Trial, space: Space) -> dict[str, Value]:
    """A value for each axis that has an effect, as the sampler suggests it."""
    drawn: dict[str, Value] = {}
    for key, axis in space.items():
        if axis.applies(drawn):
            drawn[key] = _suggest(trial, key, axis)
    return drawn


def _suggest(trial: Trial, key: str, axis: Axis) -> Value:
    if axis.choices:
        chosen = trial.suggest_categorical(key, axis.choices)
        assert chosen is not None
        return chosen
    if axis.integer:
        return trial.suggest_int(key, int(axis.low), int(axis.high), log=axis.log)
    return trial.suggest_float(key, axis.low, axis.high, log=axis.log)
