"""Saving and loading tensors: atomic, checked against the file's checksums, and without running code from a file."""

import contextlib
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files.atomic import atomic_write
from utils.files.file_kinds import ZIP, foreign_kind

# The first bytes of files that torch wrote before version 1.6, which have no checksums.
OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def save_tensors(content: Any, path: Path) -> None:
    """`torch.save`, atomically. Through a file handle: equal content then gives equal bytes.

    Raises:
        WriteError: the file cannot be written; it is as it was before.
    """
    atomic_write(path, lambda file: torch.save(content, file))


def load_tensors(path: Path, mmap: bool = False) -> Any:
    """`torch.load` of tensors and plain values only, onto the CPU, after checking the file's checksums.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    with errors_of_reading(path):
        check_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def check_file(path: Path) -> None:
    """Refuse what is no file of tensors, or a damaged one.

    Raises:
        UserError: says what it is.
        OSError, zipfile.BadZipFile, ...: it cannot be read; for `errors_of_reading`.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, expected a file' if path.is_dir() else 'no such file'}")
    if kind := foreign_kind(path, zip_expected=True):
        raise UserError(f"{path}: {kind}")
    if is_archive(path):
        # torch.load does not look at the checksums that its own file format carries.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path}: damaged (checksum of {damaged} is wrong)")


@contextlib.contextmanager
def errors_of_reading(path: Path) -> Iterator[None]:
    """Whatever a damaged or foreign file raises in the block becomes a `UserError` of one line."""
    try:
        yield
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
        # This is not a closed list: zipfile and torch each have many ways to refuse. All of them mean the same to the
        # user.
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


def on_cpu(value: Any) -> Any:
    """Nested dicts and lists with every tensor on the CPU, so that they load on machines without a GPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    return [on_cpu(item) for item in value] if isinstance(value, list) else value


def size_bytes(model: nn.Module) -> int:
    """Size of the model's state dict."""
    return sum(value.nbytes for value in model.state_dict().values())
