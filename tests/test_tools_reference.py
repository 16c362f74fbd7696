"""tools/README.md has every option of every program."""

import importlib
import re
import sys

import pytest
from scripts import PROJECT

PROGRAMS = [
    "train.py",
    "train_with_distill.py",
    *sorted(str(path.relative_to(PROJECT)) for path in (PROJECT / "tools").glob("[!_]*.py")),
]


def options_of(program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The long options that `--help` lists."""
    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit):
        getattr(module, "command_line", module.main)()
    columns = re.findall(r"^  (-.*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    return set(re.findall(r"--[\w-]+", " ".join(columns))) - {"--help"}


def options_in_the_reference(program: str) -> set[str]:
    """The long options in the table of the program's chapter."""
    text = (PROJECT / "tools" / "README.md").read_text(encoding="utf-8")
    assert f"\n## {program}\n" in text, f"tools/README.md has no chapter '## {program}'"
    chapter = text.split(f"\n## {program}\n")[1].split("\n## ")[0]
    columns = re.findall(r"^\| (`--.*?) \|", chapter, re.MULTILINE)
    return set(re.findall(r"--[\w-]+", " ".join(columns)))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_reference_has_the_options_of_help(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert options_in_the_reference(program) == options_of(program, monkeypatch, capsys)
