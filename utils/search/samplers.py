"""What Optuna decides in a search: the next values (sampler), and which trials to prune (pruner)."""

import copy
import importlib.util
import itertools
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from loguru import logger
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, CmaEsSampler, TPESampler
from optuna.trial import FrozenTrial

from utils.config_sections import OptunaConfig
from utils.errors import UserError

PRUNED_AFTER = "pruned_after_epochs"  # user attribute of a trial that the pruner has ended


def check_sampler(settings: OptunaConfig, distributions: Mapping[str, BaseDistribution], n_trials: int) -> None:
    """Refuse a sampler whose package is missing, or a grid of ranges; warn of what a sampler cannot do.

    Raises:
        UserError: says what to do.
    """
    if settings.sampler == "grid":
        combinations = len(_grid(distributions))
        if n_trials < combinations:
            logger.warning(f"optuna.sampler grid has {combinations} combinations, and --n_trials is {n_trials}")
        return
    if settings.n_startup_trials >= n_trials:
        logger.warning(
            f"optuna.sampler has no effect: all of {n_trials} trials are drawn at random, as are the first "
            f"optuna.n_startup_trials = {settings.n_startup_trials}"
        )
    if settings.sampler != "cmaes":
        return
    if importlib.util.find_spec("cmaes") is None:
        raise UserError(
            "optuna.sampler: cmaes needs the package cmaes: install it with `uv sync --extra cmaes`, or use "
            "optuna.sampler=tpe"
        )
    choices = [key for key, item in distributions.items() if isinstance(item, CategoricalDistribution)]
    numbers = [key for key in distributions if key not in choices]
    unsearched = choices + (numbers if len(numbers) == 1 else [])
    if unsearched:
        logger.warning(
            f"optuna.sampler cmaes searches two numbers or more, and no choices: {', '.join(unsearched)} "
            f"{'is' if len(unsearched) == 1 else 'are'} drawn at random; optuna.sampler=tpe searches all"
        )


def _grid(distributions: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """All combinations of the choices.

    Raises:
        UserError: a key has a range instead.
    """
    ranges = [key for key, item in distributions.items() if not isinstance(item, CategoricalDistribution)]
    if ranges:
        raise UserError(
            f"optuna.sampler: grid needs choices; found a range for {', '.join(ranges)}: write "
            f"optuna.search_space={{{ranges[0]}: {{choices: [...]}}}}, or use optuna.sampler=tpe"
        )
    values = itertools.product(*(item.choices for item in distributions.values()))
    return [dict(zip(distributions, combination, strict=True)) for combination in values]


def make_sampler(
    settings: OptunaConfig, seed: int, trial_number: int, distributions: Mapping[str, BaseDistribution]
) -> BaseSampler:
    """The sampler of one trial's values.

    Each trial has a sampler of its own, seeded by the trial's number. So a restarted process does not draw its
    first values again, parallel processes do not draw the same ones, and a process that is killed and started
    again suggests what it would have suggested. What a sampler learns from is in the study.
    """
    own_seed = int(np.random.SeedSequence([seed, trial_number]).generate_state(1)[0])
    if settings.sampler == "grid":
        return GridInOrder(_grid(distributions))
    if settings.sampler == "tpe":
        return TPESampler(seed=own_seed, n_startup_trials=settings.n_startup_trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return CmaEsSampler(
            seed=own_seed,
            n_startup_trials=settings.n_startup_trials,
            consider_pruned_trials=True,  # otherwise it would learn from the few trials that Hyperband does not prune
            warn_independent_sampling=False,
        )


class GridInOrder(BaseSampler):
    """The combinations one after another, by the numbers of the trials.

    (Optuna's own grid draws them at random, and the same one twice where several processes ask at once.)
    """

    def __init__(self, combinations: list[dict[str, Any]]):
        self._combinations = combinations

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: each value is asked for by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value of the trial's combination. A trial that repeats a dead one has the combination of that one."""
        number = min([trial.number, *repeated_by(trial)])
        repeats = sum(bool(repeated_by(other)) for other in study.get_trials(deepcopy=False)[:number])
        return self._combinations[(number - repeats) % len(self._combinations)][param_name]


def repeated_by(trial: FrozenTrial) -> list[int]:
    """Numbers of the trials whose heartbeat stopped, and whose values this trial repeats."""
    return trial.system_attrs.get("retry_history", [])


class EpochHyperband(HyperbandPruner):
    """Hyperband whose resource is the number of finished epochs.

    Trials report an epoch under its number from 0, and Hyperband compares a reported step with
    min_resource * reduction_factor^k: unchanged, all comparisons would come an epoch late. So it gets each epoch
    under the number of epochs that are then finished, 1 to max_epoch.
    """

    def __init__(self, settings: OptunaConfig, max_epoch: int):
        super().__init__(settings.min_resource, max_epoch, settings.reduction_factor)
        self._max_epoch = max_epoch

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether to prune the trial after its last reported epoch; never after epoch `max_epoch`."""
        if trial.last_step is not None and trial.last_step + 1 >= self._max_epoch:
            return False
        shown = copy.copy(trial)
        shown.intermediate_values = {step + 1: value for step, value in trial.intermediate_values.items()}
        is_pruned = super().prune(study, shown)
        if is_pruned:
            # For the process that resumes the trial if this one is killed before it records the state: asked a second
            # time, Hyperband takes a trial for one that has passed.
            study._storage.set_trial_user_attr(trial._trial_id, PRUNED_AFTER, trial.last_step + 1)
        return is_pruned

    def prepare(self, study: optuna.Study) -> None:
        """Create the brackets now: samplers need them before Hyperband's first decision, which would create them."""
        self.prune(study, optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING))


def make_pruner(settings: OptunaConfig, max_epoch: int) -> EpochHyperband:
    """The pruner of a study of trials of `max_epoch` epochs.

    Raises:
        UserError: trials would end before their first comparison.
    """
    if settings.min_resource > max_epoch:
        raise UserError(
            f"optuna.min_resource: found {settings.min_resource}, expected at most optimizer_config.max_epoch = "
            f"{max_epoch}"
        )
    return EpochHyperband(settings, max_epoch)
