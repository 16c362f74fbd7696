"""Writing files so that a reader, or a crash at any moment, never sees half of one."""

import contextlib
import errno
import fcntl
import io
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TextIO

from utils.errors import UserError
from utils.files.disk_space import FULL, REMEDIES
from utils.runtime.signals import held_signals

TEMPORARY_PREFIX = ".tmp-"


class WriteError(UserError):
    """A file cannot be written: the disk is full, say."""


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `write` puts into a file handle, all or nothing.

    A temporary file in the same folder is filled, flushed to the disk and renamed over `path`; then the
    folder is flushed too, so that the rename itself survives a power cut.

    Raises:
        WriteError: the folder is not writable or the disk is full; `path` is as it was before.
    """
    with held_signals():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(path.parent, path.name)
            descriptor, temporary = _new_temporary_file(path)
        except OSError as error:
            raise write_error(path, error) from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                write(file)
                file.flush()
                os.fsync(file.fileno())
                # While it is open: until then its lock tells others that it is no left-over.
                temporary.replace(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            reason = _os_error_in(error)
            if reason is not None:
                raise write_error(path, reason) from None
            raise
        try:
            _fsync_folder(path.parent)
        except OSError as error:
            message = f"{path}: is written, but the disk does not confirm it ({error}){_advice(error)}"
            raise WriteError(message) from None


def atomic_write_text(path: Path, write: Callable[[TextIO], object]) -> None:
    """`atomic_write` of a text, in UTF-8, with line ends as they are written.

    Raises:
        WriteError: as `atomic_write`.
    """

    def write_text(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
        write(text)
        text.flush()
        text.detach()

    atomic_write(path, write_text)


def atomic_copy(source: Path, target: Path) -> None:
    """Replace `target` by a byte-for-byte copy of `source`, all or nothing.

    Raises:
        WriteError: as `atomic_write`.
        UserError: `source` cannot be read.
    """
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None
    atomic_write(target, lambda file: file.write(content))


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        WriteError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from None


def move(source: Path, target: Path) -> None:
    """Rename a file within its folder; one that is called `target` is replaced.

    Raises:
        WriteError: it cannot be renamed.
    """
    try:
        source.replace(target)
        _fsync_folder(target.parent)
    except OSError as error:
        raise write_error(source, error) from None


def earlier_path(path: Path, number: int) -> Path:
    """`best.pth` -> `best.earlier-1.pth`: a name for a file that another one takes the place of."""
    return path.with_name(f"{path.stem}.earlier-{number}{path.suffix}")


def free_number(*paths: Path) -> int:
    """The first number that no file has been set aside under, of all these that belong together."""
    return next(n for n in itertools.count(1) if not any(earlier_path(path, n).exists() for path in paths))


def set_aside(path: Path) -> Path:
    """Give a file a name under which nothing overwrites it; the new path.

    Raises:
        WriteError: it cannot be renamed.
    """
    aside = earlier_path(path, free_number(path))
    move(path, aside)
    return aside


def remove_temporary_files(folder: Path, name: str = "") -> None:
    """Remove what killed processes left behind in `folder` of files called `name`, or of all."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if path.name.endswith(name):
            # An error: another process has removed it, or holds its lock, since it is writing it.
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents where they are absent.

    Raises:
        UserError: it cannot be made, or files cannot be made in it.
    """
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    try:
        if existing.is_dir() and not is_writable(existing):
            raise PermissionError(errno.EACCES, f"{existing} is read-only")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None


def is_writable(folder: Path) -> bool:
    """Whether files may be made in `folder`. A folder marked read-only is left alone, by root too."""
    return folder.is_dir() and bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def _new_temporary_file(path: Path) -> tuple[int, Path]:
    """Descriptor and path of a new file beside `path`, locked so that no other process takes it for a left-over."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=f"-{path.name}", dir=path.parent)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # removed by another process before it was locked


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a network's file system, which has no such thing
            raise
    finally:
        os.close(descriptor)


def _os_error_in(error: BaseException | None) -> OSError | None:
    """The error of the system that `error` is or came from: `torch.save` makes another one of it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def write_error(path: Path, error: OSError, kept: str = "what was there before is unchanged") -> WriteError:
    """What to tell the user of an error that the system gave while `path` was written."""
    reason = f"[Errno {error.errno}] {error.strerror}" if error.errno else str(error)
    return WriteError(f"{path}: cannot be written (OSError: {reason}); {kept}{_advice(error)}")


def _advice(error: OSError) -> str:
    return f"; {REMEDIES}" if error.errno in FULL else ""
