"""`data.on_bad_trip` holds in every tool that reads trips, and for trips that are too long for the model as well."""

from pathlib import Path

import pytest
from helpers import append_line, error_of, replace_line, time_list, trip, write_trips
from scripts import make_mini_teacher, mini, run

from utils.data.cache import load_trips
from utils.data.road_network import RoadNetwork
from utils.data.trips import read_trips

SKIP = ("--set", "data.on_bad_trip=skip")
HINT = "; --set data.on_bad_trip=skip leaves such trips out"


def long_trip(roads: int) -> str:
    return trip(",".join(str(i % 2) for i in range(roads)), time_list(roads))  # 0 -> 1 -> 0 -> ...


def test_a_trip_that_is_too_long_is_named_by_its_own_line_and_number(network: RoadNetwork, workplace: Path) -> None:
    path = write_trips(workplace / "t.csv", trip("0,9"), "", trip("0,1"), long_trip(6), long_trip(5), trip("1,2"))
    assert error_of(read_trips, path, network, "error", 4).startswith("t.csv, line 2: trip 1: position 2: found road 9")
    replace_line(path, 2, trip("0,1"))
    too_long = "t.csv, line 5: trip 3: 5 roads before the destination, expected at most 4; raise "
    assert error_of(read_trips, path, network, "error", 4) == f"{too_long}trajectory_encoder_config.max_len{HINT}"
    trips = read_trips(path, network, "skip", 4)
    assert (len(trips), trips.skipped, trips.number.tolist(), trips.line.tolist()) == (4, 1, [1, 2, 4, 5], [2, 4, 6, 7])


def test_skipped_trips_of_both_kinds_are_counted_together(
    network: RoadNetwork, workplace: Path, messages: list[str]
) -> None:
    path = write_trips(workplace / "t.csv", trip("0,1"), long_trip(9), trip("0,9"), trip("1,2"))
    assert len(read_trips(path, network, "skip", 4)) == 2
    assert messages == [
        f"{path}: skipped 2 trips of 4 (the first: line 3: trip 2: 8 roads before the destination, expected at most 4; "
        "raise trajectory_encoder_config.max_len)"
    ]


def test_the_cache_serves_every_limit_and_both_rules(network: RoadNetwork, workplace: Path) -> None:
    write_trips(workplace / "train.csv", trip("0,1"), long_trip(9), trip("0,9"), trip("1,2"))
    assert len(load_trips(workplace, "train", network, "skip")) == 3
    made = [path.stat().st_mtime_ns for path in (workplace / ".cache").iterdir()]
    assert len(load_trips(workplace, "train", network, "skip", 4)) == 2
    assert "line 3: trip 2: 8 roads" in error_of(load_trips, workplace, "train", network, "error", 4)
    assert "line 4: trip 3: position 2" in error_of(load_trips, workplace, "train", network, "error", 8)
    assert [path.stat().st_mtime_ns for path in (workplace / ".cache").iterdir()] == made


@pytest.mark.parametrize("row", [trip("0,9"), long_trip(9), "1"])
def test_where_skipping_would_leave_nothing_it_is_no_advice(row: str, network: RoadNetwork, workplace: Path) -> None:
    path = write_trips(workplace / "t.csv", row, row)
    assert not error_of(read_trips, path, network, "error", 4).endswith(HINT)
    assert error_of(read_trips, path, network, "skip", 4).startswith("t.csv: no trips but ")
    append_line(path, trip("0,1"))
    assert error_of(read_trips, path, network, "error", 4).endswith(HINT)
    assert len(read_trips(path, network, "skip", 4)) == 1


def test_every_tool_that_reads_trips_skips_them(project: Path) -> None:
    """Bad and too long ones, in each split and in a file of one's own."""
    make_mini_teacher(project)
    data = project / "data" / "Mini"
    good = {split: (data / f"{split}.csv").read_text().splitlines() for split in ("train", "val", "test")}
    for split in good:
        append_line(data / f"{split}.csv", "1,2,3," + trip("0,46,121"))
    settings = ("--set", "trajectory_encoder_config.max_len=12", "--set", "optimizer_config.max_epoch=1")
    small = [
        word for part in ("n_layer=1", "n_head=1", "n_embd=8", "max_epoch=1") for word in ("--set", f"teacher.{part}")
    ]
    commands = {
        "prepare": mini("tools/prepare_dataset.py", *settings),
        "train": mini("train.py", *settings),
        "distil": mini("train_with_distill.py", *settings),
        "evaluate": mini("tools/evaluate.py", "--checkpoint", "save/Mini/seed0/best.pth", *settings[:2]),
        "evaluate a file": mini(
            *("tools/evaluate.py", "--checkpoint", "save/Mini/seed0/best.pth", *settings[:2]),
            *("--trips", "data/Mini/test.csv"),
        ),
        "plot": mini("tools/plot_run.py", "--output", "run.png", *settings[:2]),
        "teach": mini("tools/train_teacher.py", *settings[:2], *small),
    }
    for name, command in commands.items():
        done = run([*command, *SKIP], project)
        assert done.returncode == 0, (name, done.stderr)
        reads = {"teach": ("train", "val"), "evaluate": ("train", "test"), "plot": ("train", "test")}
        splits = reads.get(name.split()[0], tuple(good))
        for split in splits:
            assert f"data/Mini/{split}.csv: skipped " in done.stderr, (name, split)
        failed = run(command, project)
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-1].startswith("error: data/Mini/"), (name, failed.stderr)
        assert HINT in failed.stderr.splitlines()[-1]
