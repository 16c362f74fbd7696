"""Weights of HOSER from a file: a state dict as it is saved here, or in a form that other programs give it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from models.hoser import HOSER
from utils.errors import UserError
from utils.files.state_dicts import state_dicts_in, unwrapped, without_prefix
from utils.files.tensor_files import load_tensors

# Features that differ by less were computed by another processor, whose float32 logarithms are others.
SAME_FEATURE = 2e-5


def load_model(model: HOSER, path: Path) -> None:
    """Load the weights in `path` into `model`, whose features of the road network stay those of its data.

    A state dict inside a checkpoint is taken where there is one only, names lose the prefixes that wrappers give
    them, and pruned weights are multiplied by their masks. One warning names the features in the file that are others.

    Raises:
        UserError: the file cannot be read, holds something else, or the weights are of another model.
    """
    known = {name for name, _ in model.named_parameters()}
    state = find_state_dict(load_tensors(path), path, lambda names: bool(known & names))
    load_parameters(model, state, path, "was it trained with another configuration or data set?")
    if different := different_features(model, state):
        logger.warning(
            f"{path}: was trained with other {', '.join(different)} than the data has now; the data's own are used"
        )


def find_state_dict(content: Any, path: Path, is_wanted: Callable[[set[str]], bool]) -> dict[str, Tensor]:
    """The one state dict in what was read from `path` whose names `is_wanted` takes, with plain names.

    Raises:
        UserError: there is none, or there are several; says what the file is.
    """
    if kind := _other_kind(content, path):
        raise UserError(f"{path}: {kind}")
    try:
        states = {key: without_prefix(unwrapped(state), is_wanted) for key, state in state_dicts_in(content)}
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    found = {key: state for key, state in states.items() if is_wanted(set(state))}
    if len(found) != 1:
        keys = ", ".join(map(str, found or (content if isinstance(content, Mapping) else ())))[:200]
        what = "several sets of weights" if found else type(content).__name__
        raise UserError(
            f"{path}: found {what}{f' ({keys})' if keys else ''}, expected a state dict of HOSER (names and tensors); "
            "save it alone with torch.save"
        )
    [(key, state)] = found.items()
    if key:
        logger.info(f"{path}: holds more than weights; those under {key!r} are used")
    return state


def _other_kind(content: Any, path: Path) -> str:
    """What the file is, if it is one of ours and no model; else empty."""
    if not isinstance(content, Mapping):
        return ""
    if "distill_enabled" in content and "model_state_dict" in content:
        best = path.with_name("best.pth")
        place = f"best.pth beside it ({best})" if best.exists() else "best.pth, which is not beside it"
        return f"is the rolling checkpoint of a training, whose model is {place}"
    if "val_perplexity" in content and "best_state_dict" in content:
        return "is the rolling checkpoint of a teacher's training; expected a model of HOSER, such as best.pth"
    if "model_config" in content:
        return "is an LM-TAD teacher; expected a model of HOSER, such as best.pth"
    return ""


def different_features(model: HOSER, state: Mapping[str, Tensor]) -> list[str]:
    """The kinds of features of the road network that are others in `state` than in `model`."""
    buffers = model.feature_buffers().items()
    different = (kind for name, (kind, own) in buffers if name in state and not _same(state[name], own))
    return list(dict.fromkeys(different))


def load_parameters(model: nn.Module, state: Mapping[str, Tensor], path: Path, advice: str) -> None:
    """`model.load_state_dict`, with its errors in one line.

    Raises:
        UserError: the weights are of another model, or are not finite.
    """
    for name, own in model.named_parameters():
        if name not in state or state[name].shape != own.shape:
            continue  # torch lists all of these together
        if not state[name].is_floating_point():
            raise UserError(f"{path}: {name}: found {state[name].dtype}, expected {own.dtype}; {advice}")
        if not state[name].isfinite().all():
            raise UserError(f"{path}: {name}: found NaN or infinite weights; {advice}")
    try:
        model.load_state_dict(dict(state))
    except (RuntimeError, IndexError) as error:
        # The first line is a heading; each further line is one key that does not fit.
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        problem = str(problems[0] if problems else error)[:300].rstrip(".")
        raise UserError(f"{path}: does not fit this model and data: {problem}{more}; {advice}") from None


def _same(found: Tensor, own: Tensor) -> bool:
    """Whether features are equal, up to rounding, in whatever type they were saved."""
    if found.shape != own.shape:
        return False
    own = own.cpu().double()
    rounding = torch.finfo(found.dtype).eps * own.abs() if found.is_floating_point() else 0.0
    return bool(((found.double() - own).abs() <= SAME_FEATURE + rounding).all())
