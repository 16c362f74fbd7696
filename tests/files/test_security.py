"""Nothing that others wrote is run, and no name leads out of its folder."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from scripts import PROJECT, mini, run

from utils.config import load_config
from utils.errors import UserError
from utils.tracking.run import open_run

# Calls that run what they are given, or read a pickle without a look at it.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"),
    *("pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "pandas.read_pickle"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.jit.load", "torch.hub.load"),
}


def sources() -> list[Path]:
    paths = [
        *PROJECT.glob("*.py"),
        *(p for room in ("models", "utils", "tools") for p in PROJECT.glob(f"{room}/**/*.py")),
    ]
    assert len(paths) > 50
    return paths


def calls_in(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls by their names as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    for name, call in calls_in(path):
        options = keywords(call)
        assert name not in FORBIDDEN, f"line {call.lineno}"
        assert options.get("shell", "False") == "False", f"line {call.lineno}"
        if name == "torch.load":
            assert options["weights_only"] == "True", f"line {call.lineno}"
        if name == "np.load":
            assert options["allow_pickle"] == "False", f"line {call.lineno}"


def test_the_search_for_forbidden_calls_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("import os\nmodel.eval()\nos.system(eval('1'))\n")
    assert [name for name, _ in calls_in(path) if name in FORBIDDEN] == ["os.system", "eval"]


def test_yaml_makes_plain_values_only(workplace: Path) -> None:
    (workplace / "a.yaml").write_text("distill:\n  teacher: !!python/object/apply:pathlib.Path.touch [sentinel]\n")
    with pytest.raises(UserError, match=r"a\.yaml: line 2, column 12: not valid YAML"):
        load_config("Mini", "a.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config("Mini", None, ["distill.teacher=!!python/object/apply:pathlib.Path.touch [sentinel]"])
    assert not (workplace / "sentinel").exists()
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load("!!python/name:os.system")


NAMES = ["../x", "/tmp/x", "a/../../x", "a\0b", "..", "a\nb"]


@pytest.mark.parametrize("name", [*NAMES, "", "\ud800"])
def test_run_names_stay_below_save(name: str, workplace: Path) -> None:
    with pytest.raises(UserError, match="expected a path below save/Mini/"), open_run("Mini", name):
        pass
    assert not list(workplace.iterdir())


@pytest.mark.parametrize("script", ["train.py", "train_with_distill.py", "tools/prepare_dataset.py"])
@pytest.mark.parametrize("name", [name for name in NAMES if "\0" not in name])
def test_data_set_names_stay_below_data(script: str, name: str, project: Path) -> None:
    done = run([script, "--dataset", name, "--config", "Mini.yaml"], project)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --dataset ")
    assert {path.name for path in project.iterdir()} == {"data", "Mini.yaml"}


@pytest.mark.parametrize("name", [name for name in NAMES if "\0" not in name])
def test_study_names_stay_below_tune(name: str, project: Path) -> None:
    done = run(mini("tools/tune_hoser.py", "--study_name", name), project)
    assert done.returncode == 2
    assert "expected the name of a folder" in done.stderr
