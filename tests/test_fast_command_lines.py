"""What a command line can answer by itself does not wait for the imports of the work."""

import json
import subprocess
import sys

import pytest
from scripts import PROJECT

PROGRAMS = [
    "train.py",
    "train_with_distill.py",
    *(f"tools/{path.name}" for path in (PROJECT / "tools").glob("[!_]*.py")),
]
SLOW = {"matplotlib", "numpy", "optuna", "scipy", "sqlalchemy", "tensorboard", "torch", "wandb", "yaml"}
# Runs all programs in one process, each until it exits, and prints their exit codes and what was imported by then.
RUN_ALL = """
import contextlib, io, json, os, runpy, sys
codes, programs, argument = {}, sys.argv[2:], sys.argv[1]
for program in programs:
    sys.argv = [program, argument]
    sys.path.insert(0, os.path.dirname(program) or ".")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as error:
            codes[program] = error.code
print(json.dumps([codes, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--no_such_option", 2)])
def test_help_and_mistakes_are_answered_before_slow_imports(argument: str, code: int) -> None:
    command = [sys.executable, "-c", RUN_ALL, argument, *PROGRAMS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    codes, modules = json.loads(done.stdout)
    assert codes == dict.fromkeys(PROGRAMS, code)
    assert not SLOW & set(modules)


def test_garbage_is_searched_for_again_when_a_program_runs() -> None:
    code = """
import gc
from utils.command_line import answer_before_imports, run_command_line
found = [gc.isenabled()]
answer_before_imports(lambda: None)
found.append(gc.isenabled())
run_command_line(lambda: found.append(gc.isenabled()))
print(found, gc.get_freeze_count() > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[True, False, True] True\n"
