"""Whatever happens to a program, no file is half written, and running it again ends as if nothing had happened.

Faults are injected into real processes, most of them when these change a file. `uv run pytest tests/faults --long`
injects hundreds, and prints a table of what became of them; without `--long` there are a few of each kind.
"""

import random
from collections.abc import Callable
from itertools import cycle

import pytest
from faults.campaign import Campaign, Tally
from faults.injector import Fault
from faults.programs import PROGRAMS, TRAININGS, Program

Choose = Callable[..., list[int]]
Report = Callable[[Tally], None]

MANY_OF_A_SEARCH = 12  # times the number of parts: a search makes hundreds of writes that are all alike

programs = pytest.mark.parametrize("program", PROGRAMS, ids=str)
trainings = pytest.mark.parametrize("program", TRAININGS, ids=str)


def events_of(campaign: Campaign, *kinds: str) -> list[int]:
    """Numbers of the undisturbed run's changes of files, or of those of some kinds."""
    events = campaign.reference.events
    return [number for number, event in enumerate(events) if not kinds or event.split()[0] in kinds]


@programs
def test_sigkill_when_a_file_changes(campaign: Campaign, choose: Choose, report: Report) -> None:
    kinds = cycle(("half", "kill"))
    faults = [Fault(next(kinds), at) for at in choose(events_of(campaign), few=2, many=10)]
    report(campaign.inject(faults, "SIGKILL at a change of a file"))


@programs
def test_sigkill_at_any_moment(campaign: Campaign, part: int, request: pytest.FixtureRequest, report: Report) -> None:
    rng = random.Random(f"{campaign.program} {part}")
    count = 3 if request.config.getoption("--long") else 1
    report(campaign.kill_after(rng.random() * campaign.reference.seconds for _ in range(count)))


@programs
def test_signals(campaign: Campaign, program: Program, choose: Choose, report: Report) -> None:
    kinds = cycle(("SIGTERM", "SIGINT") if PROGRAMS.index(program) % 2 else ("SIGINT", "SIGTERM"))
    faults = [Fault(next(kinds), at) for at in choose(events_of(campaign), few=1, many=4)]
    report(campaign.inject(faults, "SIGTERM, SIGINT"))


@programs
def test_a_disk_that_is_full_from_some_write_on(campaign: Campaign, choose: Choose, report: Report) -> None:
    many = MANY_OF_A_SEARCH if campaign.program.name == "tune_hoser.py" else None
    events = choose(events_of(campaign, "open", "write", "mkdir"), few=1, many=many)
    report(campaign.inject([Fault("ENOSPC", at, stays=True) for at in events], "disk full (each write)"))


@programs
def test_a_disk_that_fails_for_a_moment(campaign: Campaign, choose: Choose, report: Report) -> None:
    events = choose(events_of(campaign, "fsync", "rename", "remove"), few=1, many=MANY_OF_A_SEARCH)
    faults = [Fault("EIO", at) for at in events]
    report(campaign.inject(faults, "failing fsync, rename, remove"))


@programs
def test_a_file_system_that_becomes_read_only(campaign: Campaign, choose: Choose, report: Report) -> None:
    faults = [Fault("EROFS", at, stays=True) for at in choose(events_of(campaign), few=1, many=3)]
    report(campaign.inject(faults, "read-only from some moment on"))


@programs
def test_a_clock_that_jumps(campaign: Campaign, choose: Choose, report: Report) -> None:
    kinds = cycle(("backward", "forward"))
    faults = [Fault(next(kinds), at) for at in choose(events_of(campaign), few=1, many=2)]
    report(campaign.inject(faults, "clock jumps by a day"))


@trainings
def test_a_gpu_that_vanishes(campaign: Campaign, choose: Choose, report: Report) -> None:
    faults = [Fault("cuda", step) for step in choose(list(range(8)), few=1)]
    report(campaign.inject(faults, "GPU vanishes"))
