"""Configuration: a YAML file plus `--set KEY=VALUE` overrides -> frozen, checked dataclasses.

Nothing downstream asks whether a key exists: what is not in the file has the default written here.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from utils.config_sections import Config
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent

# Published files carry this section as a form that the public code fills in at run time.
PLACEHOLDER_SECTION = "road_network_encoder_feature"


def load_config(
    dataset: str = "Beijing",
    path: str | Path | None = None,
    overrides: typing.Sequence[str] | typing.Mapping[str, Any] = (),
) -> Config:
    """Read the file that `config_path` names, or else take the published values.

    `overrides`, applied in their order, are `section.key=value` texts with YAML values, or a mapping from
    keys (or sections) to values.

    Raises:
        UserError: no such file, YAML that does not parse, an unknown key, a value of the wrong type or
            out of range, or sizes that do not fit together.
    """
    path = config_path(dataset, path)
    tree, source = ({}, f"config of {dataset}") if path is None else (_read_yaml(path), str(path))
    _check_placeholder(tree, source)
    config = _build(Config, tree, source, "")
    if isinstance(overrides, typing.Mapping):
        parsed = [(key, value, f"--set {key}={value}") for key, value in flatten(overrides).items()]
    else:
        parsed = [(*_parse_override(text), f"--set {text}") for text in overrides]
    for key, value, override_source in parsed:
        config = _override(config, key, value, override_source)
        source += f" with {override_source}"
    _check_sizes(config, source)
    _check_names(config, source)
    return config


def config_path(dataset: str, path: str | Path | None = None) -> Path | None:
    """The configuration file of a run: `path` if it is given, else `config/{dataset}.yaml`, else None.

    That file is looked for in the working folder, as all paths are, and then among those that come with the project.
    """
    if path is not None:
        return Path(path)
    name = Path("config") / f"{dataset}.yaml"
    return next((place for place in (name, PROJECT / name) if place.exists()), None)


def config_source(
    dataset: str, path: str | Path | None, overrides: typing.Sequence[str] | typing.Mapping[str, Any] = ()
) -> str:
    """Where a configuration comes from, for the log: `config/Demo.yaml, distill.lambda=1`."""
    file = config_path(dataset, path)
    texts = [] if isinstance(overrides, typing.Mapping) else overrides
    return ", ".join(["published values" if file is None else str(file), *texts])


def config_to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dicts, as in the YAML file."""

    def section(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {config_key(name): list(value) if isinstance(value, tuple) else value for name, value in items}

    return dataclasses.asdict(config, dict_factory=section)


def config_to_yaml(config: Config) -> str:
    """The text of a file that `--config` takes."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Plain YAML; but a key that stands twice is an error, where YAML's own loader takes the last one."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def flatten(tree: typing.Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as `section.key` entries; a search space is one value."""
    flat = {}
    for key, value in tree.items():
        is_section = isinstance(value, typing.Mapping) and prefix + key != "optuna.search_space"
        flat |= flatten(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = _Loader(path.read_text(encoding="utf-8-sig")).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: {where}not valid YAML ({problem})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: found {_kind(tree)}, expected sections such as 'optimizer_config:'")
    return tree


def _check_placeholder(tree: dict[str, Any], source: str) -> None:
    """The published form may be part of the file, but must be empty: its values come from the data."""
    pending = [(PLACEHOLDER_SECTION, tree.pop(PLACEHOLDER_SECTION, None))]
    seen = set()  # YAML's aliases can repeat a section without end
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            pending += [(f"{key}.{name}", inner) for name, inner in value.items()]
        elif value is not None and not isinstance(value, dict):
            raise UserError(f"{source}: {key}: found {_kind(value)}, expected nothing (it is computed from the data)")


def _build(cls: type, tree: Any, source: str, prefix: str) -> Any:
    """An instance of the dataclass `cls` from the mapping `tree`; defaults where keys are absent."""
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{source}: {prefix.rstrip('.')}: found {_kind(tree)}, expected a section of keys")
    hints = typing.get_type_hints(cls)
    fields = {config_key(f.name): f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in tree.items():
        if key not in fields:
            raise UserError(f"{source}: unknown key '{prefix}{key}'{_suggestion(str(key), prefix)}")
        name, metadata = fields[key].name, fields[key].metadata
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], value, source, f"{prefix}{key}.")
        else:
            values[name] = _check_value(value, hints[name], metadata, f"{source}: {prefix}{key}")
    return cls(**values)


def config_key(field_name: str) -> str:
    """The key of a field in the file: `lambda` is a word of Python, so its field is `lambda_`."""
    return field_name.rstrip("_")


def _all_keys(cls: type = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        keys.append(prefix + config_key(name))
        if dataclasses.is_dataclass(hint):
            keys += _all_keys(hint, f"{prefix}{name}.")
    return keys


def _suggestion(key: str, prefix: str) -> str:
    """`; did you mean ...?`: the closest known key, first in the same section, then anywhere."""
    known = _all_keys()
    here = [k for k in known if k.startswith(prefix) and "." not in k[len(prefix) :]]
    for pool in (here, known):
        by_name = {k.rsplit(".", 1)[-1]: k for k in reversed(pool)}  # of equal names the first section's
        close = difflib.get_close_matches(key, by_name, n=1, cutoff=0.6)
        if close:
            return f"; did you mean '{by_name[close[0]]}'?"
    closest = difflib.get_close_matches(prefix + key, here or known, n=1, cutoff=0.0)
    return f"; the closest known key is '{closest[0]}'"


def _check_value(value: Any, hint: Any, limits: typing.Mapping[str, Any], where: str) -> Any:
    """`value` as the type `hint`, within its limits; `where` names file and key for the message."""
    if typing.get_origin(hint) is tuple:
        return _check_texts(value, where)
    if typing.get_origin(hint) is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return value
        raise UserError(f"{where}: found {_kind(value)}, expected a section of configuration keys")
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    kind = next(t for t in allowed if t is not type(None))
    # YAML 1.1 reads 1e-3 (without a dot) as text; everybody means the number.
    if kind is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if type(value) is not kind:
        raise UserError(f"{where}: found {_kind(value)}, expected {_KIND_NAMES[kind]}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{where}: found {value}, expected a finite number")
    for name, fails, words in _LIMITS:
        if name in limits and fails(value, limits[name]):
            raise UserError(f"{where}: found {value!r}, expected {words.format(limits[name])}")
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(f"{where}: found {value!r}, expected one of {', '.join(limits['choices'])}")
    return value


def _check_texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    found = next((item for item in value if not isinstance(item, str)), None) if isinstance(value, list) else value
    raise UserError(f"{where}: found {_kind(found)}, expected a list of texts, such as [beijing, distillation]")


_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LIMITS = (
    ("min", lambda value, limit: value < limit, "at least {}"),
    ("max", lambda value, limit: value > limit, "at most {}"),
    ("above", lambda value, limit: value <= limit, "more than {}"),
    ("below", lambda value, limit: value >= limit, "less than {}"),
)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    return f"{value!r} ({_KIND_NAMES.get(type(value), type(value).__name__)})"


def _parse_override(text: str) -> tuple[str, Any]:
    """`section.key=value` of the command line -> key and value."""
    key, _, raw = text.partition("=")
    try:
        return key.strip(), yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {text}: the value is not valid YAML") from None


def _override(config: Config, key: str, value: Any, source: str) -> Config:
    """`config` with one key changed."""
    section, dot, name = key.partition(".")
    sections = [f.name for f in dataclasses.fields(config)]
    if key in sections:
        example = config_key(dataclasses.fields(getattr(config, key))[0].name)
        raise UserError(f"{source}: {key} is a section, expected one of its keys, such as {key}.{example}=...")
    if not dot or section not in sections:
        raise UserError(f"--set {key}: unknown key '{key}'{_suggestion(name or key, '')}")
    part = getattr(config, section)
    if name not in map(config_key, (f.name for f in dataclasses.fields(part))):
        # Without its value, which may be a secret.
        raise UserError(f"--set {key}: unknown key '{key}'{_suggestion(name, f'{section}.')}")
    changed = _build(type(part), {name: value}, source, f"{section}.")
    own = {f.name: getattr(changed, f.name) for f in dataclasses.fields(part) if config_key(f.name) == name}
    return dataclasses.replace(config, **{section: dataclasses.replace(part, **own)})


def _check_sizes(config: Config, source: str) -> None:
    """The equalities between widths that the model's architecture needs."""
    encoder, trajectory = config.road_network_encoder_config, config.trajectory_encoder_config
    width = encoder.road_width
    for key, found in (
        ("road_network_encoder_config.intersection_emb_dim", encoder.intersection_emb_dim),
        ("road_network_encoder_config.zone_id_emb_dim", encoder.zone_id_emb_dim),
        ("trajectory_encoder_config.hidden_dim", trajectory.hidden_dim),
        ("navigator_config.hidden_dim", config.navigator_config.hidden_dim),
    ):
        if found != width:
            raise UserError(
                f"{source}: {key}: found {found}, expected {width} (the sum of the five road embedding widths)"
            )
    if trajectory.hidden_dim % 2:
        raise UserError(
            f"{source}: trajectory_encoder_config.hidden_dim: found {trajectory.hidden_dim}, "
            "expected an even number (cosines and sines of the time)"
        )
    if 2 * trajectory.hidden_dim % trajectory.num_heads:
        raise UserError(
            f"{source}: trajectory_encoder_config.num_heads: found {trajectory.num_heads}, "
            f"expected a divisor of 2 * hidden_dim = {2 * trajectory.hidden_dim}"
        )


def _check_names(config: Config, source: str) -> None:
    """What W&B takes as names and tags: it would refuse others when the run starts."""
    wandb = config.wandb
    for key, name, can_be_empty in (("project", wandb.project, False), ("entity", wandb.entity, True)):
        if re.search(r"[/\\#?%:\x00-\x1f]", name) or len(name) > 128 or not (name or can_be_empty):
            raise UserError(
                f"{source}: wandb.{key}: found {name!r}, expected a name of up to 128 characters without / \\ # ? % :"
            )
    for tag in wandb.tags:
        if not 1 <= len(tag) <= 64:
            raise UserError(f"{source}: wandb.tags: found {tag!r}, expected tags of 1 to 64 characters")
    if len(wandb.run_name) > 128:
        raise UserError(f"{source}: wandb.run_name: found {len(wandb.run_name)} characters, expected at most 128")
