"""Saving and loading tensors: atomic, verified, and without running code from a file."""

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from utils.config import display_path
from utils.digest import content_digest
from utils.disk_space import warn_if_short
from utils.errors import UserError
from utils.files import atomic_copy, atomic_write

EPOCH_FILE = re.compile(r"epoch_(\d+)\.pth$")
CHECKSUM = "checksum"


def save_tensors(content: Any, path: Path) -> None:
    """`torch.save`, atomically. Through a file handle: equal content then gives equal bytes."""
    atomic_write(path, lambda file: torch.save(content, file))


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """`torch.load` of tensors and plain values only, onto the CPU, after checking the file's checksums.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    shown = display_path(path)
    if not path.is_file():
        raise UserError(f"{shown}: no such file")
    try:
        # torch.load does not look at the checksums that its own file format carries.
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise UserError(f"{shown}: unpacks to more than its own size, which no file of torch does")
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{shown}: damaged (checksum of {damaged} is wrong)")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if not _is_plain(content, path.stat().st_size):
            raise UserError(f"{shown}: holds something else than plain tensors and values, or damaged")
        return content
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{shown}: holds more than tensors and plain values; it is not loaded, since it could run any code"
        ) from None
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror or error})") from None
    except Exception as error:
        # What a damaged or foreign file raises here is not a closed list: zipfile and torch each have
        # many ways to refuse. All of them mean the same to the user.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{shown}: not a file of tensors saved by torch, or damaged ({reason})") from None


def _is_plain(content: Any, max_values: int) -> bool:
    """Whether all tensors hold what they show, and there are no more values than a file of `max_values` bytes names.

    A stride of zero can make a few bytes look like terabytes, and lists of the same lists a few like billions. Integers
    of thousands of digits cannot even be printed.
    """
    pending, count = [content], 0
    while pending:
        value = pending.pop()
        count += 1
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
                return False
            if value.nbytes > value.untyped_storage().nbytes():
                return False
        elif isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            pending += value
        elif isinstance(value, int) and value.bit_length() > 64:
            return False
        if count + len(pending) > max_values:
            return False
    return True


def state_dict_of(model: nn.Module) -> "OrderedDict[str, Tensor]":
    """The model's state dict on the CPU, so that it loads on machines without a GPU; with its checksum."""
    state = OrderedDict((name, value.detach().cpu()) for name, value in model.state_dict().items())
    # Where torch keeps notes on modules by their names, and none has this one: a bare state dict all the same.
    state._metadata = {CHECKSUM: content_digest(state)}
    return state


def size_bytes(model: nn.Module) -> int:
    """Size of the model's state dict."""
    return sum(value.nbytes for value in model.state_dict().values())


def load_model(model: nn.Module, path: Path) -> None:
    """Load the state dict in `path` into `model`.

    Raises:
        UserError: the file cannot be read, has been changed, or is of another model.
    """
    state = load_tensors(path)
    fit_state_dict(model, state, path, "was it trained with another configuration or data set?")
    notes = getattr(state, "_metadata", None)
    # Of what was loaded, so that forms of the same weights are the same. Other programs write no checksum.
    if isinstance(notes, dict) and notes.get(CHECKSUM, "") not in ("", content_digest(dict(model.state_dict()))):
        raise UserError(
            f"{display_path(path)}: its weights are not those that were saved (the checksum in it is another); if "
            "they were changed on purpose, save them with torch.save(dict(state), path)"
        )


def fit_state_dict(model: nn.Module, state: Any, path: Path, advice: str) -> None:
    """Put `state`, read from `path`, into `model`; `advice` ends the message if it does not fit.

    Raises:
        UserError: it is no state dict, or of another model.
    """
    shown = display_path(path)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{shown}: found {type(state).__name__}, expected a state dict (names and tensors); {advice}")
    for name, own in model.state_dict().items():
        if name not in state or state[name].shape != own.shape:
            continue  # torch tells of all of these together
        # load_state_dict would convert anything to anything.
        if state[name].is_floating_point() != own.is_floating_point():
            raise UserError(f"{shown}: {name}: found {state[name].dtype}, expected {own.dtype}; {advice}")
        if not state[name].isfinite().all():
            raise UserError(f"{shown}: {name}: found NaN or infinite weights; {advice}")
    try:
        model.load_state_dict(state)
    except (RuntimeError, IndexError) as error:
        # The first line is a heading; each further line is one key that does not fit.
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        problem = str(problems[0] if problems else error)[:300].rstrip(".")
        raise UserError(f"{shown}: does not fit this model and data: {problem}{more}; {advice}") from None


class EpochCheckpoints:
    """Checkpoints of vanilla training: every epoch is kept, and `best.pth` is a copy of the best one."""

    def __init__(self, folder: Path, writes: bool = True):
        """`writes` is for one of several processes."""
        self.folder, self._writes = folder, writes
        self.best_path = folder / "best.pth"
        self.accuracies: list[float] = []

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) of the highest validation accuracy."""
        return self.accuracies.index(max(self.accuracies)) + 1

    def announce(self, max_epoch: int, model_bytes: int) -> None:
        """Say what becomes of an earlier run's files in the folder, and whether the disk has room for the new ones."""
        if not self._writes:
            return
        matches = ((EPOCH_FILE.match(path.name), path) for path in self.folder.glob("epoch_*.pth"))
        found = {int(match[1]): path for match, path in matches if match}
        replaced = [path for epoch, path in found.items() if epoch <= max_epoch]
        replaced += [self.best_path] if self.best_path.exists() else []
        warn_if_short(self.folder, (max_epoch + 1) * model_bytes, replaced, spare=model_bytes)
        if found:
            logger.info(
                f"{display_path(self.folder)} holds an earlier run; vanilla training does not resume: starting "
                "from scratch, its files are replaced epoch by epoch"
            )
        stale = [found[epoch].name for epoch in sorted(found) if epoch > max_epoch]
        if stale:
            logger.warning(f"left over from a longer run, and not replaced by this one: {', '.join(stale)}")

    def save(self, model: nn.Module, accuracy: float) -> None:
        """Save the epoch that was just validated; if strictly better than all before, also as best.pth."""
        self.accuracies.append(accuracy)
        if not self._writes:
            return
        path = self.folder / f"epoch_{len(self.accuracies)}.pth"
        save_tensors(state_dict_of(model), path)
        if self.best_epoch == len(self.accuracies):
            atomic_copy(path, self.best_path)
