"""What a search varies: `optuna.search_space` of the configuration, checked before anything is trained."""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from utils.config import Config, config_to_dict, flatten
from utils.errors import UserError

SECTION = "optuna.search_space"
SHAPES = "{low: ..., high: ...}, with log: true or step: ... where wanted, or {choices: [...]}"

# Keys that a trial's training does not read, or that all trials must have in common.
FIXED = {
    "optuna.": "it is the search itself",
    "wandb.": "it changes no training",
    "teacher.": "only tools/train_teacher.py reads it",
    "optimizer_config.max_epoch": "it is the resource that the pruner allots",
}

# The configuration with `key=value` texts applied on top of the command line's.
Load = Callable[[Sequence[str]], Config]


class SearchSpace:
    """The keys that are searched, each with its range or choices."""

    def __init__(self, config: Config, load: Load):
        """Check the search space of `config`.

        Raises:
            UserError: a key that does not exist or cannot be searched, or limits that make no sense.
        """
        space = config.optuna.search_space
        if not space:
            raise UserError(f"{SECTION}: found nothing, expected one key or more, each with {SHAPES}")
        self.distributions: dict[str, BaseDistribution] = {}
        for key, entry in space.items():
            self.distributions[key] = _distribution(key, entry, config, load)
        unread = [key for key in self.distributions if key.startswith("distill.") and key != "distill.enable"]
        if unread and not config.distill.enable and "distill.enable" not in self.distributions:
            raise UserError(f"{SECTION}: {unread[0]}: has no effect while distill.enable is false; set it to true")

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """The trial's values; those that it already has stay."""
        # As ask(fixed_distributions) does for a new trial.
        return {key: trial._suggest(key, item) for key, item in self.distributions.items()}


def override_texts(values: Mapping[str, Any]) -> list[str]:
    """Values of keys as `key=value` texts of `--set`, to the last digit."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _distribution(key: str, entry: Any, config: Config, load: Load) -> BaseDistribution:
    """One key's distribution from its entry in the section."""
    where = f"{SECTION}: {key}"
    for prefix, reason in FIXED.items():
        if key == prefix or (prefix.endswith(".") and key.startswith(prefix)):
            raise UserError(f"{where}: cannot be searched, {reason}; remove it from the search space")
    kind = _kind_of(key, config, load, where)
    if not isinstance(entry, dict) or not ({"choices"} == set(entry) or {"low", "high"} <= set(entry)):
        raise UserError(f"{where}: found {json.dumps(entry, default=str)}, expected {SHAPES}")
    if set(entry) == {"choices"}:
        return _choices(key, entry["choices"], load, where)
    unknown = sorted(set(map(str, entry)) - {"low", "high", "log", "step"})
    if unknown:
        raise UserError(f"{where}: unknown key '{unknown[0]}', expected {SHAPES}")
    if kind not in (int, float):
        raise UserError(f"{where}: found low and high, expected {{choices: [...]}} (its values are no numbers)")
    return _range(key, entry, kind, load, where)


def _kind_of(key: str, config: Config, load: Load, where: str) -> type:
    """The type of a key's values.

    Raises:
        UserError: no such key (the closest one is named), or a key of many values.
    """
    section, _, name = key.partition(".")
    part = getattr(config, section, None)
    hints = typing.get_type_hints(type(part)) if dataclasses.is_dataclass(part) else {}
    hint = {field.rstrip("_"): hint for field, hint in hints.items()}.get(name)
    if hint is None:
        _checked(key, None, load, where)  # raises, and names the closest key
        raise UserError(f"{where}: expected a key with one value")
    if typing.get_origin(hint) in (tuple, dict):
        raise UserError(f"{where}: expected a key with one value, and this one holds several")
    return next((kind for kind in typing.get_args(hint) if kind is not type(None)), hint)


def _checked(key: str, value: Any, load: Load, where: str) -> Any:
    """`value` as the configuration takes it: of the key's type and within its limits."""
    try:
        return flatten(config_to_dict(load(override_texts({key: value}))))[key]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except TypeError:
        raise UserError(f"{where}: found a {type(value).__name__}, expected a single value") from None


def _choices(key: str, choices: Any, load: Load, where: str) -> CategoricalDistribution:
    if not isinstance(choices, list) or not choices:
        raise UserError(f"{where}: choices: found {json.dumps(choices, default=str)}, expected a list of values")
    values = [_checked(key, choice, load, where) for choice in choices]
    if len(set(values)) < len(values):
        raise UserError(f"{where}: choices: a value occurs twice")
    return CategoricalDistribution(values)


def _range(key: str, entry: dict[str, Any], kind: type, load: Load, where: str) -> BaseDistribution:
    low, high = (_checked(key, entry[name], load, f"{where}: {name}") for name in ("low", "high"))
    log, step = entry.get("log", False), entry.get("step")
    if low is None or high is None:
        raise UserError(f"{where}: found nothing for {'low' if low is None else 'high'}, expected a number")
    if low > high:
        raise UserError(f"{where}: low is {low} and high is {high}, expected low to be at most high")
    if type(log) is not bool:
        raise UserError(f"{where}: log: found {log!r}, expected true or false")
    if log and low <= 0:
        raise UserError(f"{where}: low is {low}, expected more than 0, as log is true")
    if step is None:
        return (IntDistribution if kind is int else FloatDistribution)(low, high, log=log)
    if log:
        raise UserError(f"{where}: found both log and step, expected one of them")
    if type(step) not in ((int,) if kind is int else (int, float)) or not 0 < step <= max(high - low, 1):
        raise UserError(
            f"{where}: step: found {step!r}, expected a {'whole ' * (kind is int)}number above 0 that fits between "
            "low and high"
        )
    steps = (high - low) / step
    if abs(steps - round(steps)) > 1e-6:
        raise UserError(f"{where}: step: {step} does not lead from {low} to {high} in whole steps")
    return (IntDistribution if kind is int else FloatDistribution)(low, high, step=kind(step))


def column_names(keys: Sequence[str]) -> dict[str, str]:
    """Short names of keys, without their section where that is clear."""
    short_names = [key.rpartition(".")[2] for key in keys]
    return {key: name if short_names.count(name) == 1 else key for key, name in zip(keys, short_names, strict=True)}
