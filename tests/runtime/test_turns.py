"""Programs that would need more threads together than there are cores compute in turns, and none waits for ever."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from utils.runtime import turns
from utils.runtime.turns import Turns


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No turns with other programs of this machine, and short ones."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(turns, "TURN_S", 0.1)


def compute(items: int, threads: int, patience_s: float, pipe: Connection) -> None:
    """Send when each item began and ended."""
    turns.PATIENCE_S = patience_s
    turns.own_cores = lambda: {0, 1}
    own = Turns.open(threads)
    for _ in range(items):
        if own is not None:
            own.take()
        began = time.monotonic()
        time.sleep(0.02)
        pipe.send((began, time.monotonic()))
    pipe.close()


class Program:
    """A process that computes."""

    def __init__(self, items: int, threads: int = 2, patience_s: float = 20.0):
        context = get_context("fork")
        self._pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=compute, args=(items, threads, patience_s, theirs))
        self.process.start()
        theirs.close()

    def times(self) -> Iterator[tuple[float, float]]:
        """Of the items, as they are done."""
        while True:
            try:
                yield self._pipe.recv()
            except EOFError:
                self.process.join()
                return


def overlaps(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> int:
    return sum(a < d and c < b for (a, b), (c, d) in itertools.product(one, other))


def test_two_programs_never_compute_at_once_and_both_have_their_turns() -> None:
    programs = [Program(40), Program(40)]
    one, other = (list(program.times()) for program in programs)
    assert len(one) == len(other) == 40
    assert not overlaps(one, other)
    owners = [owner for _, owner in sorted([(t, 0) for t in one] + [(t, 1) for t in other])]
    changes = sum(a != b for a, b in itertools.pairwise(owners))
    assert changes >= 8  # 0.8 s of work each, 0.1 s a turn


def test_programs_whose_threads_fit_beside_each_other_compute_at_once() -> None:
    programs = [Program(40, threads=1), Program(40, threads=1)]
    one, other = (list(program.times()) for program in programs)
    assert overlaps(one, other) > 10


def test_a_program_that_is_killed_gives_its_turn_back_and_one_that_is_stopped_is_not_waited_for_long() -> None:
    killed = Program(1000)
    next(killed.times())
    os.kill(killed.process.pid, signal.SIGKILL)
    assert len(list(Program(5).times())) == 5
    stopped = Program(1000)
    next(stopped.times())
    os.kill(stopped.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert len(list(Program(20, patience_s=0.3).times())) == 20
    assert time.monotonic() - began < 5  # once 0.3 s, not at each item
    os.kill(stopped.process.pid, signal.SIGKILL)


def test_there_are_no_turns_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(turns, "own_cores", lambda: {0})
    assert Turns.open(2) is not None
    assert any(tmp_path.rglob("*.turn"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert Turns.open(2) is None
