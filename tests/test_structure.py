"""Imports go one way: a package of utils imports those before it only, and models knows nothing of utils."""

import ast
import importlib
import sys

import pytest
from scripts import PROJECT

import utils

ORDER = (
    "runtime",
    "files",
    "data",
    "city_import",
    "training",
    "distillation",
    "generation",
    "judging",
    "tracking",
    "search",
    "benchmark",
)


def imported(package: str) -> set[str]:
    """The top packages and the packages of utils that the files of a package import."""
    names = set()
    for path in (PROJECT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names |= {".".join(module.split(".")[:2]) for module in modules if module}
    return names


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_those_before_it_only(package: str) -> None:
    later = {f"utils.{name}" for name in ORDER[ORDER.index(package) + 1 :]}
    assert not imported(f"utils/{package}") & later


def test_models_know_nothing_of_training() -> None:
    assert not {name for name in imported("models") if name.startswith(("utils", "tools", "train"))}


def test_every_package_has_its_place_in_the_order() -> None:
    folders = {path.name for path in (PROJECT / "utils").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ORDER)


@pytest.mark.parametrize("name", utils.FORMER_NAMES)
def test_a_module_still_imports_under_its_former_name(name: str) -> None:
    sys.modules.pop(f"utils.{name}", None)
    with pytest.warns(DeprecationWarning, match=rf"utils\.{name} is utils\.\S+ now"):
        former = importlib.import_module(f"utils.{name}")
    present = importlib.import_module(f"utils.{utils.FORMER_NAMES[name]}")
    names = [item for item in vars(present) if not item.startswith("__")]
    assert names and all(getattr(former, item) is getattr(present, item) for item in names)
