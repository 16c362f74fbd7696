"""Imports go one way: a package of utils imports those before it only, and models knows nothing of utils."""

import ast

import pytest
from scripts import PROJECT

ORDER = ("runtime", "files", "data", "training", "distillation", "generation", "tracking", "search", "benchmark")


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
