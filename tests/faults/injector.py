"""Faults from within a process: what it asks of the file system fails, or is the last thing that it asks.

Installed in a child of the zygote before the script begins. Every change below the working folder that goes through
Python's `open` and `os` is an event: a file opened for writing, each write to it, fsync, rename, removal, new folder.
A `Fault` says at which event what happens.
"""

import builtins
import datetime
import errno
import io
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CREATING = ("open", "write", "fsync", "rename", "mkdir")  # what a full disk refuses
FULL = ("ENOSPC", "EDQUOT")
DAY_S = 86_400


@dataclass(frozen=True)
class Fault:
    """What happens, and when.

    kind: `record` (nothing; the events are written down), `kill` (SIGKILL instead of the event), `half` (SIGKILL
    when half of it is done), `SIGTERM`, `SIGINT`, the name of an error of the system, `cuda` (the device vanishes),
    `forward` or `backward` (the clock jumps by a day).
    """

    kind: str
    at: int = 0  # number of the event, from 0; of the optimizer step, for `cuda`
    stays: bool = False  # an error comes at all events from this one on, as on a disk that stays full
    told: str = ""  # file that tells that it has happened, or what the events were
    first: str = ""  # events are counted from the first one of a path that contains this

    def __str__(self) -> str:
        return f"{self.kind} at {self.at}{' and ever after' * self.stays}"


class Injector:
    """Counts events, and does what the fault says."""

    def __init__(self, fault: Fault, root: Path):
        self._fault, self._root = fault, f"{root.resolve()}{os.sep}"
        self._count, self._busy = 0, False
        self._told = os.open(fault.told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def event(self, kind: str, path: Any, half: Callable[[], object] | None = None) -> None:
        """One is about to happen to `path`, a path or a descriptor; `half` does a part of it."""
        name = self._below_root(path)
        if name is None:
            return
        number, fault = self._count, self._fault
        if number == 0 and fault.first not in name:
            return
        self._count += 1
        if fault.kind == "record":
            os_write(self._told, f"{kind} {name}\n".encode())
        elif number == fault.at or (number > fault.at and fault.stays):
            self._happen(kind, path, half)

    def _happen(self, kind: str, path: Any, half: Callable[[], object] | None) -> None:
        fault = self._fault
        if fault.kind in FULL and kind not in CREATING:
            return
        os_write(self._told, b"it happened\n")
        if fault.kind in ("kill", "half"):
            if fault.kind == "half" and half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind in ("SIGTERM", "SIGINT"):
            os.kill(os.getpid(), signal.Signals[fault.kind])
        elif fault.kind in ("forward", "backward"):
            clock_offset_s[0] = DAY_S if fault.kind == "forward" else -DAY_S
        else:
            if kind == "write" and fault.stays:
                half()
            number = getattr(errno, fault.kind)
            raise OSError(number, os.strerror(number), *([] if isinstance(path, int) else [str(path)]))

    def lose_device(self) -> None:
        """Let the optimizer step `at` and all later ones fail as they do when a GPU has fallen off the bus."""
        import torch

        step, count = torch.optim.AdamW.step, 0

        def failing(optimizer: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count <= self._fault.at:
                return step(optimizer, *args, **options)
            os_write(self._told, b"it happened\n")
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

        torch.optim.AdamW.step = failing

    def _below_root(self, path: Any) -> str | None:
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        name = str(Path(os.fsdecode(path)).absolute())
        return name.removeprefix(self._root) if name.startswith(self._root) else None


os_write, os_open = os.write, os.open
clock_offset_s = [0]


def watch_clock() -> None:
    """Let what this process sees as the time of day be off by `clock_offset_s`."""
    now, real = time.time, datetime.datetime

    class Shifted(real):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real.now(tz) + datetime.timedelta(seconds=clock_offset_s[0])

    time.time = lambda: now() + clock_offset_s[0]
    datetime.datetime = Shifted


def install(fault: Fault, root: Path) -> None:
    """Let `fault` happen in this process, to files below `root`."""
    injector = Injector(fault, root)
    if fault.kind == "cuda":
        injector.lose_device()
        return
    if fault.kind in ("forward", "backward"):
        watch_clock()
    watch_files(injector.event)
    watch_os(injector.event)


def watch_files(event: Callable[..., None]) -> None:
    """Let what is opened with `open` report its changes."""

    class WatchedFile(io.FileIO):
        """Each write to the system is an event."""

        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            event("write", self.fileno(), lambda: super(WatchedFile, self).write(view[: len(view) // 2]))
            return super().write(view)

        def truncate(self, size: int | None = None) -> int:
            event("truncate", self.fileno())
            return super().truncate(size)

    def watched_open(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+"):
            return io_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            event("open", file)
        raw = WatchedFile(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline, buffering == 1)

    io_open = io.open
    io.open = builtins.open = watched_open


def watch_os(event: Callable[..., None]) -> None:
    """Let the functions of `os` that change files report it."""

    def watched_os_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC):
            event("open", path)
        return os_open(path, flags, *args, **options)

    os.open = watched_os_open
    # name in `os`, kind of event, place of the argument that is changed
    for name, kind, place in (
        ("write", "write", 0),
        ("fsync", "fsync", 0),
        ("replace", "rename", 1),
        ("rename", "rename", 1),
        ("unlink", "remove", 0),
        ("remove", "remove", 0),
        ("rmdir", "remove", 0),
        ("mkdir", "mkdir", 0),
    ):
        setattr(os, name, watched(getattr(os, name), kind, place, event))


def watched(function: Callable[..., Any], kind: str, place: int, event: Callable[..., None]) -> Callable[..., Any]:
    """`function` of `os`, an event of this kind for its argument number `place`."""

    def call(*args: Any, **options: Any) -> Any:
        # Killed when a rename is "half done", it is done.
        event(kind, args[place], lambda: function(*args, **options) if kind in ("rename", "remove") else None)
        return function(*args, **options)

    return call
