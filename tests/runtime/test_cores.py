"""Programs use the cores that others leave, and the number of threads changes their speed only."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from scripts import PROJECT, make_mini_project, make_mini_teacher, mini, run, script_environment

from utils.runtime import cores
from utils.runtime.cores import Load, Threads, on_free_cores, same_products

CPU = torch.device("cpu")
DISTILL = mini("train_with_distill.py", "--cuda", "-1", "--seed", "1", "--set", "optimizer_config.max_epoch=2")


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of a program whose user has set nothing, on a machine of four cores."""
    for name in (*cores.FIXED_BY, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(cores, "THREADS", Threads())
    yield
    torch.set_num_threads(before)


class Machine(Load):
    """A machine whose free cores are said."""

    def __init__(self, free: list[float | None]):
        super().__init__()
        self.free = iter(free)

    def free_cores(self) -> float | None:
        return next(self.free)


def threads_of(monkeypatch: pytest.MonkeyPatch, free: list[float | None], device: torch.device = CPU) -> list[int]:
    """How many threads each of as many items is worked on with."""
    monkeypatch.setattr(cores, "LOAD", Machine(free))
    return [torch.get_num_threads() for _ in on_free_cores(free, device)]


def test_the_number_of_threads_follows_the_load(monkeypatch: pytest.MonkeyPatch, messages: list[str]) -> None:
    assert threads_of(monkeypatch, [4.0, 3.1, None, 2.0, 0.4, 0.0, 3.7, 4.0]) == [4, 3, 3, 2, 1, 1, 4, 4]
    assert messages == ["other programs are busy: 3 of 4 threads now; results do not depend on it"]
    # The next loop begins with what is known, and is not bound to it.
    assert threads_of(monkeypatch, [0.2, None]) == [1, 1]
    assert threads_of(monkeypatch, [None, 4.0]) == [1, 4]


def test_a_number_that_somebody_sets_meanwhile_is_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of(monkeypatch, [1.0]) == [1]
    torch.set_num_threads(3)
    assert threads_of(monkeypatch, [None, 4.0, 2.0, 4.0]) == [3, 3, 2, 3]


def test_what_is_to_be_compiled_is_compiled_for_all_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert threads_of(monkeypatch, [1.0]) == [1]
    cores.THREADS.keep()
    assert torch.get_num_threads() == 4
    assert threads_of(monkeypatch, [1.0, 1.0]) == [4, 4]


@pytest.mark.parametrize("reason", ["a gpu", "torchrun", *cores.FIXED_BY])
def test_it_stays_where_something_else_says_how_many(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.Turns, "open", lambda threads: None)
    if reason == "torchrun":
        monkeypatch.setenv("WORLD_SIZE", "2")
    elif reason != "a gpu":
        monkeypatch.setenv(reason, "4")
    device = torch.device("cuda" if reason == "a gpu" else "cpu")
    assert threads_of(monkeypatch, [0.0, 0.0], device) == [4, 4]


@pytest.mark.parametrize("reason", ["the user's number", "other products", "no load", "compiled code"])
def test_where_it_cannot_follow_programs_take_turns(
    reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken, ended = [], []
    monkeypatch.setattr(cores.Turns, "take", lambda self: taken.append(torch.get_num_threads()))
    monkeypatch.setattr(cores.Turns, "close", lambda self: ended.append(self))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("utils.runtime.turns.own_cores", lambda: {0, 1})
    if reason == "the user's number":
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
    if reason == "other products":
        monkeypatch.setattr(cores, "same_products", lambda threads, others: False)
    if reason == "no load":
        monkeypatch.setattr(cores, "STAT", tmp_path / "stat")
    if reason == "compiled code":
        cores.THREADS.may_change = False
    assert threads_of(monkeypatch, [4.0, 1.0, 1.0, 1.0]) == [4, 4, 4, 4]
    assert taken == [4] * (3 if reason == "other products" else 4)
    assert len(ended) == 1


@pytest.mark.parametrize(
    "text", ["", "cpu0 1 2", "cpu0 a b c d e f g", "cpu7 1 2 3 4 5 6 7 8 9 10", "cpu0 0 0 0 0 0 0 0 0 0 0"]
)
def test_a_system_that_does_not_say_its_load_is_no_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "STAT", tmp_path / "stat")
    monkeypatch.setattr(cores, "own_cores", lambda: {0})
    (tmp_path / "stat").write_text(text)
    assert not Load().is_known
    (tmp_path / "stat").write_text("cpu0 0 0 0 9 0 0 0 0 0 0")
    assert Load().is_known


def test_the_load_is_that_of_other_programs_on_own_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, clock = tmp_path / "stat", [100.0, 7.0]  # seconds of the clock, and of this process
    monkeypatch.setattr(cores, "STAT", stat)
    monkeypatch.setattr(cores, "own_cores", lambda: {0, 2})
    monkeypatch.setattr(cores.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cores.time, "process_time", lambda: clock[1])

    def write(*taken_s: int) -> None:
        # user, nice, system, idle, iowait, irq, softirq, steal: in hundredths of a second
        rows = [f"cpu{i} {60 * s} {10 * s} {20 * s} 5000 77 {4 * s} {6 * s} 9 0 0" for i, s in enumerate(taken_s)]
        stat.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *rows, "intr 12345", "ctxt 1"]))

    monkeypatch.setattr(cores.os, "sysconf", lambda name: 100)
    write(10, 1000, 20)
    load = Load()
    clock[0] += 0.2
    assert load.free_cores() is None
    clock[:] = [104.0, 8.0]  # this process took 1 s of the 4 s
    write(13, 1004, 22)  # cores 0 and 2 worked 3 + 2 s
    assert load.free_cores() == pytest.approx(2 - (5 - 1) / 4)
    clock[0] += 4
    assert load.free_cores() == 2


def test_a_busy_program_is_noticed() -> None:
    load, busy = Load(), get_context("fork").Process(target=_work, args=(1.5,))
    began = time.process_time()
    busy.start()
    time.sleep(1.0)
    free = load.free_cores()
    busy.kill()
    assert free is not None and free < len(os.sched_getaffinity(0)) - 0.2
    assert time.process_time() - began < 0.9  # it was not this one


def _work(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_products_are_compared_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_products(4, 4)
    assert torch.get_num_threads() == 4
    same_products.cache_clear()
    monkeypatch.setattr(torch, "equal", lambda a, b: False)
    assert not same_products(4, 3)
    same_products.cache_clear()


# Trains, and prints which parts of PyTorch's compiler were imported on the way.
TRAIN = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
print({"torch._dynamo", "sympy"} & set(sys.modules) or "none")
"""


@pytest.fixture(scope="module")
def with_three_threads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and the last line that it printed: one in an interpreter of its own, as from a shell."""
    folder = make_mini_teacher(make_mini_project(tmp_path_factory.mktemp("three")))
    command = [sys.executable, "-c", TRAIN, str(PROJECT / DISTILL[0]), *DISTILL[1:]]
    variables = {**script_environment(), "OMP_NUM_THREADS": "3"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()[-1]


def results(folder: Path) -> list[object]:
    state = torch.load(folder / "save/Mini/seed1_distill/checkpoint_latest.pth")
    tensors = [value.numpy().tobytes() for value in state["model_state_dict"].values()]
    return [(folder / "save/Mini/seed1_distill/best.pth").read_bytes(), tensors]


@pytest.mark.slow
def test_a_run_writes_the_same_files_with_any_number_of_threads(
    with_three_threads: tuple[Path, str], tmp_path: Path
) -> None:
    folder = make_mini_teacher(make_mini_project(tmp_path))
    done = run(DISTILL, folder)
    assert done.returncode == 0, done.stderr
    assert results(folder) == results(with_three_threads[0])


@pytest.mark.slow
def test_training_with_a_teacher_does_not_import_the_compiler(with_three_threads: tuple[Path, str]) -> None:
    """Neither model nor optimizer nor the reading of the teacher does: it takes as long as the import of torch."""
    assert with_three_threads[1] == "none"
