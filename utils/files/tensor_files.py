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

from utils.errors import UserError
from utils.files.atomic import atomic_copy, atomic_write
from utils.files.disk_space import warn_if_short
from utils.files.file_kinds import ZIP, foreign_kind

# The number at the beginning of files that torch wrote before version 1.6, which have no checksums.
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

EPOCH_FILE = re.compile(r"epoch_(\d+)\.pth$")


def save_tensors(content: Any, path: Path) -> None:
    """`torch.save`, atomically. Through a file handle: equal content then gives equal bytes."""
    atomic_write(path, lambda file: torch.save(content, file))


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """`torch.load` of tensors and plain values only, onto the CPU, after checking the file's checksums.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, expected a file' if path.is_dir() else 'no such file'}")
    try:
        if kind := foreign_kind(path, zip_expected=True):
            raise UserError(f"{path}: {kind}")
        if is_archive(path):
            # torch.load does not look at the checksums that its own file format carries.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path}: damaged (checksum of {damaged} is wrong)")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise UserError(f"{path}: damaged ({error})") from None
        old = "" if is_archive(path) else " (it is in torch's format from before version 1.6: load and save it again)"
        raise UserError(
            f"{path}: holds more than tensors and plain values; it is not loaded, since it could run any code{old}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:
        # What a damaged or foreign file raises here is not a closed list: zipfile and torch each have
        # many ways to refuse. All of them mean the same to the user.
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a file of tensors saved by torch, or damaged ({reason})") from None


def is_archive(path: Path) -> bool:
    """Whether the file is in torch's present format, and not in that from before torch 1.6.

    Raises:
        UserError: it is in neither.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(len(OLD_FORMAT))
    if not head.startswith((ZIP, OLD_FORMAT)):
        raise UserError(f"{path}: not a file of tensors saved by torch, or damaged")
    return head.startswith(ZIP)


def state_dict_of(model: nn.Module) -> "OrderedDict[str, Tensor]":
    """The model's state dict on the CPU, so that it loads on machines without a GPU."""
    return OrderedDict((name, value.detach().cpu()) for name, value in model.state_dict().items())


def size_bytes(model: nn.Module) -> int:
    """Size of the model's state dict."""
    return sum(value.nbytes for value in model.state_dict().values())


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
                f"{self.folder} holds an earlier run; vanilla training does not resume: starting "
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
