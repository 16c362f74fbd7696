"""SIGINT and SIGTERM: they end a program between two steps of its work, in one line, with the usual code."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from scripts import PROJECT

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]


def run_program(folder: Path, main: str, number: int) -> subprocess.CompletedProcess[str]:
    """A program with the body `main`; `send()` in it sends the signal to the program itself."""
    code = f"""
import os, sys
from pathlib import Path
from utils.command_line import run_command_line
from utils.files.atomic import atomic_write
from utils.runtime.signals import held_signals, take_signals

def send():
    os.kill(os.getpid(), {int(number)})

def main():
{textwrap.indent(textwrap.dedent(main), "    ")}

run_command_line(main, kept="what is kept")
"""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_write_is_finished_first(tmp_path: Path, number: int, code: int, word: str) -> None:
    main = """
        def write(file):
            file.write(b"first half, ")
            send()
            file.write(b"second half")
        atomic_write(Path("file"), write)
        print("not reached")
    """
    done = run_program(tmp_path, main, number)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{word}: what is kept\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "first half, second half"


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_it_is_not_lost_where_it_comes_up_as_another_error(tmp_path: Path, number: int, code: int, word: str) -> None:
    main = """
        try:
            send()
        except BaseException:
            raise RuntimeError("as torch.save does") from None
    """
    done = run_program(tmp_path, main, number)
    assert (done.returncode, done.stderr) == (code, f"{word}: what is kept\n")


def test_it_is_not_lost_where_it_is_swallowed(tmp_path: Path) -> None:
    main = """
        class Destructor:
            def __del__(self):
                send()
        Destructor()
        take_signals()
        print("not reached")
    """
    done = run_program(tmp_path, main, signal.SIGINT)
    assert (done.returncode, done.stdout) == (130, "")


def test_while_held_the_first_waits_and_the_second_does_not(tmp_path: Path) -> None:
    main = """
        with held_signals():
            with held_signals():
                send()
            print("still at work")
            send()
            print("not reached")
    """
    done = run_program(tmp_path, main, signal.SIGINT)
    assert (done.returncode, done.stdout) == (130, "still at work\n")


def test_an_error_without_a_signal_stays_itself(tmp_path: Path) -> None:
    done = run_program(tmp_path, 'raise RuntimeError("a mistake of ours")', signal.SIGINT)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: a mistake of ours")
