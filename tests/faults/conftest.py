"""What the tests of faults share: undisturbed runs, and the counting."""

import fcntl
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faults.campaign import PROPERTY, Campaign, Tally
from faults.programs import Program, Reference, reference_of
from scripts import RUN_FOLDER

PARTS = 8  # tests that the faults of a kind into a program are shared among, with --long


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests with the argument `part` run once, or in parts side by side."""
    if "part" in metafunc.fixturenames:
        metafunc.parametrize("part", range(PARTS if metafunc.config.getoption("--long") else 1))


@pytest.fixture(scope="session")
def references() -> Callable[[Program], Reference]:
    """Undisturbed runs, each made by the process of the tests that first asks for it, and used by all."""
    made: dict[str, Reference] = {}

    def reference(program: Program) -> Reference:
        if program.name not in made:
            folder = Path(os.environ[RUN_FOLDER], "references", program.name)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (folder / "reference").exists():
                    found = reference_of(program, folder)
                    (folder / "reference").write_bytes(pickle.dumps(found))
                made[program.name] = pickle.loads((folder / "reference").read_bytes())
        return made[program.name]

    return reference


@pytest.fixture
def campaign(
    program: Program, references: Callable[[Program], Reference], tmp_path: Path, request: pytest.FixtureRequest
) -> Campaign:
    """Faults into `program`."""
    if not request.config.getoption("--long"):
        program = replace(program, command=[*program.command, *program.small])
    return Campaign(program, references(program), tmp_path)


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Tally], None]:
    """Counts for the table, and fails where something was lost or came out differently."""

    def judge(tally: Tally) -> None:
        record_property(PROPERTY, tally.row)
        assert tally.injected, "nothing was injected"
        assert not tally.stories, "\n".join(tally.stories)

    return judge


@pytest.fixture
def choose(request: pytest.FixtureRequest, part: int, program: Program) -> Callable[..., list[int]]:
    """Which of some events are this test's."""
    is_long = request.config.getoption("--long")

    def chosen(events: list[int], few: int, many: int | None = None) -> list[int]:
        """`few` of them at random; with --long `many` (None: all) of those of this part."""
        rng = random.Random(f"{program} {part}")
        if not is_long:
            return sorted(rng.sample(events, few))
        mine = events[part::PARTS]
        return mine if many is None else sorted(rng.sample(mine, min(many, len(mine))))

    return chosen
