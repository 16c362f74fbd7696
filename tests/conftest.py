"""Fixtures that several files of tests share. Each test writes below its own `tmp_path` only."""

import bytecode  # noqa: F401 - before all that it is for

# isort: split
import os

# Tests run side by side: threads of several processes on few cores wait for each other. PyTorch reads it when it is
# imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for the tests that need several

# isort: split
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import scripts
from helpers import chain, write_roads
from hypothesis import settings
from loguru import logger
from scripts import MINI_CITY, make_mini_project

from utils.runtime.turns import own_cores

if TYPE_CHECKING:
    from utils.data.road_network import RoadNetwork

# The same examples in every run, on slow machines too, and nothing written into the repository.
settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own."""
    parser.addoption("--long", action="store_true", help="tests/faults: inject hundreds of faults, and print a table")


def pytest_xdist_auto_num_workers() -> int:
    """One more than the machine has cores: some tests wait for a service or a lock. (Each takes seconds to start.)"""
    return len(own_cores()) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that the workers of this test run share."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="hoser-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ[scripts.RUN_FOLDER] = folder.name


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of the faults that were injected."""
    if config.getoption("--long"):
        from faults.campaign import PROPERTY, table

        reports = (report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, []))
        rows = [value for report in reports for name, value in report.user_properties if name == PROPERTY]
        if rows:
            terminalreporter.section("faults")
            for line in table(rows):
                terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `fast` the tests of the files that start no program of their own, but those marked as `slow`."""
    programs = (scripts.run, scripts.Script, subprocess)
    for item in items:
        starts_programs = any(value is program for value in vars(item.module).values() for program in programs)
        if not starts_programs and "faults" not in item.path.parts and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.fast)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: paths in messages are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mini_city(workplace: Path) -> Path:
    """A copy of the mini city (121 roads, 8 zones) that a test may break, at `data/Mini`."""
    return Path(shutil.copytree(MINI_CITY, workplace / "data" / "Mini"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working folder with the mini city and its configuration, for running the scripts in."""
    return make_mini_project(tmp_path)


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> "RoadNetwork":
    """Four roads in a row: 0 -> 1, 1 -> 2, 1 -> 0, 2 -> 3; nothing follows road 3."""
    folder = write_roads(tmp_path_factory.mktemp("network"), chain(4), [(1, 2), (0, 1), (1, 0), (2, 3)])
    from utils.data.road_network import read_road_network

    return read_road_network(folder)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What is logged during the test, message by message."""
    logged: list[str] = []
    sink = logger.add(lambda message: logged.append(message.record["message"]), level="INFO")
    yield logged
    logger.remove(sink)
