"""Configuration: a YAML file plus `--set KEY=VALUE` overrides -> frozen, checked dataclasses.

Nothing downstream asks whether a key exists: what is not in the file has the default written here.
"""

import contextlib
import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from models.config import MAX_LAYERS, MAX_WIDTH, ModelConfig, setting
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent

# Published files carry this section as a form that the public code fills in at run time.
PLACEHOLDER_SECTION = "road_network_encoder_feature"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule and the batches (DESIGN: training semantics)."""

    max_epoch: int = setting(25, "epochs to train", min=1, max=1_000_000)
    batch_size: int = setting(256, "trips in a batch", min=1)
    learning_rate: float = setting(0.001, "highest learning rate", above=0.0)
    weight_decay: float = setting(0.1, "AdamW weight decay, on all parameters", min=0.0)
    warmup_ratio: float = setting(0.1, "share of the steps with a linearly rising rate", min=0.0, below=1.0)
    max_norm: float = setting(1.0, "gradient norm above which gradients are scaled down", above=0.0)
    accum_steps: int = setting(1, "batches averaged into one optimizer step", min=1)


@dataclass(frozen=True)
class TrainingConfig:
    """How the arithmetic is carried out."""

    precision: str = setting(
        "auto",
        "auto: float32 on the CPU, bfloat16 or else float16 on CUDA",
        choices=("auto", "float32", "bfloat16", "float16"),
    )


@dataclass(frozen=True)
class DataConfig:
    """How the split files are read."""

    on_bad_trip: str = setting(
        "error", "error: stop at a malformed trip; skip: leave it out and count it", choices=("error", "skip")
    )


@dataclass(frozen=True)
class DistillConfig:
    """Distillation from an LM-TAD teacher (train_with_distill.py only)."""

    enable: bool = setting(True, "learn from the teacher; --no-distill turns it off")
    teacher: str = setting("", "teacher file; empty: save/{dataset}/teacher/weights.pt")
    grid_size: float = setting(0.001, "degrees of latitude and longitude of a grid cell", above=0.0)
    downsample: int = setting(1, "so many cells in each direction are one", min=1)
    window: int = setting(4, "tokens of the trip so far that the teacher reads", min=1)
    lambda_: float = setting(0.01, "weight of the KL term in the loss", min=0.0)
    temperature: float = setting(2.0, "softens both distributions", above=0.0)
    steps: str = setting("all", "steps of a trip that count: all, or the last only", choices=("all", "last"))
    cache: bool = setting(True, "ask the teacher once and keep its answers on disk")


@dataclass(frozen=True)
class TeacherConfig:
    """Size and training of a teacher of one's own (tools/train_teacher.py only)."""

    n_layer: int = setting(8, "transformer blocks", min=1, max=MAX_LAYERS)
    n_head: int = setting(12, "attention heads; must divide n_embd", min=1, max=MAX_WIDTH)
    n_embd: int = setting(768, "width", min=1, max=MAX_WIDTH)
    block_size: int = setting(256, "longest sequence; longer trips are cut", min=2, max=MAX_WIDTH)
    dropout: float = setting(0.1, "dropout", min=0.0, below=1.0)
    max_epoch: int = setting(20, "epochs to train", min=1, max=1_000_000)
    batch_size: int = setting(128, "trips in a batch", min=1)
    learning_rate: float = setting(0.0003, "highest learning rate", above=0.0)
    weight_decay: float = setting(0.1, "AdamW weight decay", min=0.0)
    warmup_ratio: float = setting(0.05, "share of the steps with a linearly rising rate", min=0.0, below=1.0)
    max_norm: float = setting(1.0, "gradient norm above which gradients are scaled down", above=0.0)


@dataclass(frozen=True)
class Config(ModelConfig):
    """A whole configuration file: the model's sections, as published, and those of the scripts."""

    optimizer_config: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)


def load_config(
    dataset: str = "Beijing",
    path: str | Path | None = None,
    overrides: typing.Sequence[str] | typing.Mapping[str, Any] = (),
) -> Config:
    """Read `path`, or else `config/{dataset}.yaml` if there is one, or else take the published values.

    `overrides`, applied in their order, are `section.key=value` texts with YAML values, or a mapping from
    keys (or sections) to values.

    Raises:
        UserError: no such file, YAML that does not parse, an unknown key, a value of the wrong type or
            out of range, or sizes that do not fit together.
    """
    if path is None:
        default_path = PROJECT / "config" / f"{dataset}.yaml"
        tree, source = ({}, f"config of {dataset}")
        if default_path.exists():
            tree, source = _read_yaml(default_path), display_path(default_path)
    else:
        tree, source = _read_yaml(Path(path)), display_path(path)
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
    return config


def display_path(path: str | Path) -> str:
    """`path` as a user types it: relative to the working folder where it lies below it; always printable."""
    text = str(path)
    # OSError: too long, or the working folder is gone; RuntimeError: symbolic links in a circle.
    with contextlib.suppress(ValueError, OSError, RuntimeError):
        text = str(Path(path).resolve().relative_to(Path.cwd()))
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def config_to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dicts, as in the YAML file."""
    return dataclasses.asdict(config, dict_factory=lambda items: {_key(name): value for name, value in items})


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
    """Nested sections as `section.key` entries."""
    flat = {}
    for key, value in tree.items():
        is_section = isinstance(value, typing.Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = _Loader(path.read_text(encoding="utf-8-sig")).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{display_path(path)}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{display_path(path)}: cannot be read ({error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{display_path(path)}: {where}not valid YAML ({problem})") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{display_path(path)}: found {_kind(tree)}, expected sections such as 'optimizer_config:'")
    return tree


def _check_placeholder(tree: dict[str, Any], source: str) -> None:
    """The published form may stand in the file, but only empty: its values come from the data."""
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
    fields = {_key(f.name): f for f in dataclasses.fields(cls)}
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


def _key(field_name: str) -> str:
    """The key of a field in the file: `lambda` is a word of Python, so its field is `lambda_`."""
    return field_name.rstrip("_")


def _all_keys(cls: type = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        keys.append(prefix + _key(name))
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
        example = _key(dataclasses.fields(getattr(config, key))[0].name)
        raise UserError(f"{source}: {key} is a section, expected one of its keys, such as {key}.{example}=...")
    if not dot or section not in sections:
        raise UserError(f"{source}: unknown key '{key}'{_suggestion(name or key, '')}")
    part = getattr(config, section)
    changed = _build(type(part), {name: value}, source, f"{section}.")
    own = {f.name: getattr(changed, f.name) for f in dataclasses.fields(part) if _key(f.name) == name}
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
