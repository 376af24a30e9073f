"""The study of a search in Optuna: sampler, pruner, and the trials by what became of them.

Optuna is the engine: Akiba et al., Optuna: A Next-generation Hyperparameter Optimization Framework, 2019.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from inat_job.search.space import Axis, Space, Value


class PerTrialSampler(BaseSampler):
    """A sampler whose random draws depend on the seed and the trial's number alone.

    So a search that was stopped goes on as it would have, and workers that start with one seed draw different points.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._kind, self._seed = kind, seed
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
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._own.after_trial(study, trial, state, values)


def make_pruner(name: str) -> BasePruner:
    """The pruner `asha`, `median` or `none`.

    ASHA is that of Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020.
    """
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return MedianPruner(n_startup_trials=5, n_warmup_steps=1) if name == "median" else NopPruner()


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
