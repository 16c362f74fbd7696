"""config/README.md, made from the help texts of the configuration's keys.

uv run python -m utils.config_reference > config/README.md
"""

import dataclasses
import inspect
import types
import typing
from typing import Any

import yaml

from utils.config import PLACEHOLDER_SECTION, config_key
from utils.config_sections import Config

INTRODUCTION = f"""\
# Configuration

All keys of a configuration, by section. This file is generated: edit the help texts in `models/config.py` and
`utils/config_sections.py` (or this introduction, in `utils/config_reference.py`), then run

```bash
uv run python -m utils.config_reference > config/README.md
```

## Where values come from

A key has the value that the last of these gives it:

1. the default below: the published value, where the published code has the key;
2. the configuration file: `config/NAME.yaml` for `--dataset NAME`, or the file named by `--config FILE`, which is read
   *instead* of it;
3. `--set KEY=VALUE` on the command line, such as `--set optimizer_config.max_epoch=2`; repeatable.

A file holds only what differs from the defaults; a data set without a file uses the defaults. `config/NAME.yaml` is
looked for in the working folder first, then among the files that come with the project. Values are YAML:
`--set wandb.tags='[a, b]'` is a list, and an optional number can be left empty. An unknown key, a key that appears
twice, and a value of the wrong type or out of range are errors that say what was expected. A key given by `--set` that
the program does not read causes a warning.

Every training run writes its complete configuration to `config.yaml` beside its log, such as
`log/Beijing/seed42/config.yaml`. That file can be passed to `--config` to repeat the run:

```bash
uv run python train.py --dataset Beijing --seed 42 --cuda 0 --config log/Beijing/seed42/config.yaml
```

## The files in this folder

| file | content |
|---|---|
| `Beijing.yaml`, `Porto.yaml` | as published; the values are the defaults below |
| `San_Francisco.yaml` | as published; the same, but `optimizer_config.warmup_ratio` is 0.05 |
| `Demo.yaml` | a smaller model, a smaller teacher and fewer epochs, for the built-in city on two CPU cores |

The published files contain a section `{PLACEHOLDER_SECTION}`, a form that the published code fills in at run
time. It is accepted and must stay empty: lengths, highway classes, coordinates, adjacency and zones always come from
the data.
"""

SEARCH_SPACE = """
The default search space:

```yaml
{default}```

Any key that training reads can be searched, except `optimizer_config.max_epoch` and the sections `teacher`, `wandb` and
`optuna`. An entry is either `{{low: ..., high: ...}}`, for numbers, with `log: true` for a logarithmic scale or
`step: ...` for a grid, or `{{choices: [...]}}`, for values of any type. Keys and limits are checked before the first
trial.
"""


def config_reference() -> str:
    """The text of config/README.md."""
    hints = typing.get_type_hints(Config)
    sections = [_section(field.name, hints[field.name]) for field in dataclasses.fields(Config)]
    return "\n".join([INTRODUCTION, *sections])


def _section(name: str, cls: type) -> str:
    """Heading, docstring and table of one section."""
    hints = typing.get_type_hints(cls)
    lines = [
        f"## {name}",
        "",
        inspect.getdoc(cls) or "",
        "",
        "| key | default | limits | meaning |",
        "|---|---|---|---|",
    ]
    text = ""
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING:  # the search space, which does not fit a cell
            shown = "see below"
            tree = {name: {field.name: field.default_factory()}}
            text = SEARCH_SPACE.format(default=yaml.safe_dump(tree, sort_keys=False))
        else:
            shown = _value(default)
        limits = _limits(hints[field.name], field.metadata)
        lines.append(f"| `{config_key(field.name)}` | {shown} | {limits} | {field.metadata['help']} |")
    return "\n".join(lines) + "\n" + text


def _value(value: Any) -> str:
    """A default as written in a file; an empty one as an empty cell."""
    if value is None or value in ("", ()):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _limits(hint: Any, metadata: typing.Mapping[str, Any]) -> str:
    """The values that a key takes: `integer, 1 to 1000`."""
    if "choices" in metadata:
        return ", ".join(f"`{choice}`" for choice in metadata["choices"])
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (typing.get_origin(hint) or hint,)
    names = [name for kind, name in KINDS.items() if kind in kinds]
    low = f"at least {metadata['min']:g}" if "min" in metadata else ""
    low = f"above {metadata['above']:g}" if "above" in metadata else low
    high = f"at most {metadata['max']:,}" if "max" in metadata else ""
    high = f"below {metadata['below']:g}" if "below" in metadata else high
    if "min" in metadata and "max" in metadata:
        low, high = f"{metadata['min']:,} to {metadata['max']:,}", ""
    return ", ".join(filter(None, [*names, low, high]))


KINDS = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", tuple: "list of texts", dict: "section"}


if __name__ == "__main__":
    print(config_reference(), end="")
