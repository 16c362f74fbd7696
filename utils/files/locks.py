"""Locks between processes, which the system frees however their holders end."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from loguru import logger

from utils.errors import UserError
from utils.files.atomic import make_folder, write_error

_held_folders: set[Path] = set()


class FolderInUseError(UserError):
    """Another process is working in a folder."""


@contextlib.contextmanager
def folder_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold `folder` (made if absent) for this process alone.

    A process may hold a folder twice: a search holds the folder of a run that it then starts.

    Args:
        folder: what to hold.
        wait: whether to wait, with a message, while another process holds it.

    Raises:
        FolderInUseError: another process holds it.
        UserError: it cannot be written.
    """
    own = folder.resolve()
    if own in _held_folders:
        yield
        return
    with _open(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise FolderInUseError(
                    f"{folder}: another process is working in this folder; wait for it or end it"
                ) from None
            logger.info(f"waiting for another process that is working in {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        _held_folders.add(own)
        try:
            yield
        finally:
            _held_folders.remove(own)


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the file `path` (made if absent, never removed) for a moment, after other processes.

    Gives whether it is held: without `wait`, it is not while another process holds it.

    Raises:
        UserError: it cannot be written.
    """
    with _open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _open(path: Path) -> TextIO:
    make_folder(path.parent)
    try:
        return path.open("a")
    except OSError as error:
        raise write_error(path, error) from None
