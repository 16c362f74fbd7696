"""What others do to a running program, or to its folders, costs nothing either."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.campaign import Campaign, Tally
from faults.programs import PROGRAMS, Program
from scripts import Script, run

Report = Callable[[Tally], None]

by_name = {program.name: program for program in PROGRAMS}
programs = pytest.mark.parametrize("program", PROGRAMS, ids=str)
runs = pytest.mark.parametrize("program", PROGRAMS[:3], ids=str)


def ends_well(script: Script) -> None:
    assert script.wait() == 0, script.stderr


def fails_clearly(program: Program, work: Path) -> str:
    """The line that it ends with."""
    done = run(program.command, work)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def is_at_work(work: Path) -> bool:
    """Whether a run has started to train: its data is read."""
    return any("parameters" in path.read_text() for path in work.glob("log/Mini/**/*.log"))


@programs
def test_files_that_may_not_be_large(campaign: Campaign, report: Report) -> None:
    report(campaign.limit_files([10_000, 60_000]))


@runs
def test_a_read_only_folder(campaign: Campaign, report: Report) -> None:
    """Each of three in turn; then none."""

    def protect(work: Path) -> None:
        for folder in ("save/Mini", "log/Mini", "tensorboard_log/Mini"):
            (work / folder).mkdir(parents=True, exist_ok=True)
            (work / folder).chmod(0o555)
            assert folder in fails_clearly(campaign.program, work)
            (work / folder).chmod(0o755)

    report(campaign.disturb("read-only folder", [protect]))


@runs
def test_data_and_configuration_that_change_under_a_run(campaign: Campaign, report: Report) -> None:
    def change(work: Path) -> None:
        names = ["Mini.yaml", *(f"data/Mini/{name}" for name in ("train.csv", "val.csv", "test.csv", "roadmap.geo"))]
        paths = [work / name for name in names]
        with Script(campaign.program.command, work) as script:
            script.wait_until(lambda: is_at_work(work))
            before = [path.read_bytes() for path in paths]
            for path in paths:
                path.write_bytes(b"no longer what it was\n")
            ends_well(script)
        assert campaign.differences(work) == []
        fails_clearly(campaign.program, work)
        for path, content in zip(paths, before, strict=True):
            path.write_bytes(content)

    report(campaign.disturb("data and configuration change", [change]))


@runs
def test_a_second_process_on_the_folder_of_a_run(campaign: Campaign, report: Report) -> None:
    def intrude(work: Path) -> None:
        with Script(campaign.program.command, work) as script:
            script.wait_until(lambda: is_at_work(work))
            script.send_signal(signal.SIGSTOP)  # SIGSTOP: the second must come while the first is at work
            assert "another process is working in this folder" in fails_clearly(campaign.program, work)
            script.send_signal(signal.SIGCONT)
            ends_well(script)
        assert campaign.differences(work) == []

    report(campaign.disturb("two processes", [intrude]))


@pytest.mark.parametrize("program", [by_name["prepare_dataset.py"], by_name["tune_hoser.py"]], ids=str)
def test_two_processes_that_share_the_work(campaign: Campaign, report: Report) -> None:
    is_search = campaign.program.name == "tune_hoser.py"
    command = [*campaign.program.command, *["--n_trials", "2"] * is_search]  # one for each

    def share(work: Path) -> None:
        with Script(command, work) as first, Script(command, work) as second:
            ends_well(first)
            ends_well(second)

    tally = campaign.disturb("two processes", [share])
    if is_search:
        # Which values are tried depends on what has ended by then.
        assert all("left over" not in story for story in tally.stories), tally.stories
        tally.differing, tally.stories = 0, []
    report(tally)


@contextlib.contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that takes nothing more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b".")
    yield reader, writer
    os.close(writer)
    os.close(reader)


def keep_waiting(campaign: Campaign, work: Path) -> None:
    """Nobody reads for a while."""
    with full_pipe() as (reader, writer):
        os.set_blocking(writer, True)
        with Script(campaign.program.command, work, terminal=writer, stdout=writer) as script:
            assert script.wait(1.0) is None
            threading.Thread(target=drain, args=(reader,), daemon=True).start()
            ends_well(script)


def drain(reader: int) -> None:
    while os.read(reader, 1 << 16):
        pass


def refuse(campaign: Campaign, work: Path) -> None:
    """A pipe that does not wait."""
    with full_pipe() as (_, writer), Script(campaign.program.command, work, terminal=writer) as script:
        ends_well(script)


def hang_up(campaign: Campaign, work: Path) -> None:
    """The reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with Script(campaign.program.command, work, terminal=writer) as script:
        ends_well(script)
    os.close(writer)


@programs
def test_output_that_nobody_takes(
    campaign: Campaign, program: Program, report: Report, request: pytest.FixtureRequest
) -> None:
    """In one of three ways, whose turn it is with this program; with --long in all of them."""
    ways = [lambda work, way=way: way(campaign, work) for way in (keep_waiting, refuse, hang_up)]
    if not request.config.getoption("--long"):
        ways = [ways[PROGRAMS.index(program) % len(ways)]]
    report(campaign.disturb("full and broken pipes", ways, rerun=False))
