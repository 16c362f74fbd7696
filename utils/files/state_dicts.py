"""State dicts as other programs save them: nested in a checkpoint, renamed by wrappers of modules, or pruned."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# What torch.compile, DataParallel, DistributedDataParallel and AveragedModel put before names.
WRAPPERS = ("module", "_orig_mod")
AVERAGED_COUNT = "n_averaged"  # that AveragedModel keeps beside the weights


def state_dicts_in(content: Any, key: str = "", depth: int = 2) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The named tensors of each of several nested dicts, with the keys that lead to them."""
    if not isinstance(content, Mapping) or depth < 0:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        yield from state_dicts_in(value, f"{key}.{name}".lstrip("."), depth - 1)


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the model itself, without what wrappers and pruning have made of it.

    Raises:
        ValueError: two tensors would get one name.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short == AVERAGED_COUNT or (short.endswith("_mask") and f"{name[:-5]}_orig" in state):
            continue
        if short.endswith("_orig") and f"{name[:-5]}_mask" in state:
            short, value = short[:-5], value * state[f"{name[:-5]}_mask"]
        value = value if value.layout is torch.strided else value.to_dense()
        if short in plain:
            raise ValueError(f"{short} is there twice, with and without a prefix")
        plain[short] = value
    return plain


def without_prefix(state: Mapping[str, Tensor], is_wanted: Callable[[set[str]], bool]) -> dict[str, Tensor]:
    """`state` without the first parts that all names share, such as `net.model.`, until `is_wanted` takes the names."""
    shorter = dict(state)
    while not is_wanted(set(shorter)):
        first = {name.partition(".")[0] for name in shorter}
        if len(first) != 1 or not all("." in name for name in shorter):
            return dict(state)
        shorter = {name.partition(".")[2]: value for name, value in shorter.items()}
    return shorter
