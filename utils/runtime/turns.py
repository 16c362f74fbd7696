"""Programs that run at the same time on one machine compute in turns.

Where the number of threads cannot follow the load (utils/runtime/cores.py), a program that needs more than half of the
cores computes for half a second at a time, while the others sleep. Programs whose threads fit beside each other do not
take turns.
"""

import fcntl
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import TextIO

TURN_S = 0.5
# How long a turn may take before the others go on without it: a program may be stopped (Ctrl-Z) in the middle of one.
PATIENCE_S = 20.0
POLL_S = 0.002


def own_cores() -> set[int]:
    """The cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


class Turns:
    """Two locks: who holds `turn` computes, who holds `next` has it next."""

    def __init__(self, turn: TextIO, queue: TextIO):
        self._turn, self._next = turn, queue
        self._has_turn, self._began, self._waits = False, 0.0, True

    @staticmethod
    def open(threads: int) -> "Turns | None":
        """Those of this user's programs on the same cores; None where threads fit or no folder can be written."""
        cores = own_cores()
        if 2 * threads <= len(cores):
            return None
        name = hashlib.sha1(repr(sorted(cores)).encode()).hexdigest()[:8]
        folder = Path(tempfile.gettempdir()) / f"hoser-turns-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            return Turns((folder / f"{name}.turn").open("a"), (folder / f"{name}.next").open("a"))
        except OSError:
            return None  # without turns everything is slower, and nothing else

    def close(self) -> None:
        """End, and leave the turn to others."""
        self._turn.close()  # which frees the locks
        self._next.close()

    def take(self) -> None:
        """Compute on, or wait: returns when it is this program's turn."""
        if self._has_turn:
            if time.monotonic() - self._began < TURN_S:
                return
            if _lock(self._next):  # nobody is next
                fcntl.flock(self._next, fcntl.LOCK_UN)
                self._began = time.monotonic()
                return
            fcntl.flock(self._turn, fcntl.LOCK_UN)
            self._has_turn = False
        until = time.monotonic() + (PATIENCE_S if self._waits else 0.0)
        if _lock(self._next, until):
            self._has_turn = _lock(self._turn, until)
            fcntl.flock(self._next, fcntl.LOCK_UN)
        self._began = time.monotonic()
        self._waits = self._has_turn  # after waiting in vain, only look


def _lock(file: TextIO, until: float = 0.0) -> bool:
    """Whether the lock could be taken before `until`, a time of `time.monotonic`."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_S)
        else:
            return True
