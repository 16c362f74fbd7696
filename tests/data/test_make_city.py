"""A synthetic city is a sound, repeatable data set in HOSER's format, and its command line is safe to use."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from tools.make_city import main
from utils.data.synthetic.writer import CitySpec, build_city
from utils.errors import UserError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_city.py"
FILES = ["roadmap.geo", "roadmap.rel", "test.csv", "train.csv", "val.csv"]
EARTH_RADIUS_M = 6_371_008.8


class City:
    """The files of a city as a reader that knows only the format sees them."""

    def __init__(self, folder: Path) -> None:
        self.geo = _rows(folder / "roadmap.geo")
        self.points = [json.loads(row["coordinates"]) for row in self.geo]
        # End points as the text of the file, which is how roads are found to be adjacent.
        texts = [row["coordinates"][2:-2].split("], [") for row in self.geo]
        self.ends = [(points[0], points[-1]) for points in texts]
        self.relations = [(int(r["origin_id"]), int(r["destination_id"])) for r in _rows(folder / "roadmap.rel")]
        self.candidates: dict[int, list[int]] = {}
        for origin, destination in self.relations:
            self.candidates.setdefault(origin, []).append(destination)
        self.trips = {split: _rows(folder / f"{split}.csv") for split in ("train", "val", "test")}
        everything = [row for rows in self.trips.values() for row in rows]
        self.routes = [[int(road) for road in row["rid_list"].split(",")] for row in everything]
        self.times = [[datetime.fromisoformat(t) for t in row["time_list"].split(",")] for row in everything]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cities") / "Demo"
    build_city(folder, CitySpec())
    return folder


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> City:
    return City(demo_folder)


# The network


@pytest.mark.parametrize(("roads", "seed"), [(50, 0), (60, 0), (60, 5), (500, 3), (1000, 1), (5000, 0)])
def test_number_of_roads_is_close_to_the_one_asked_for(tmp_path: Path, roads: int, seed: int) -> None:
    summary = build_city(tmp_path / "c", CitySpec(roads=roads, trips=20, seed=seed))
    assert len(_rows(tmp_path / "c" / "roadmap.geo")) == summary.roads == pytest.approx(roads, rel=0.03)


def test_columns_and_ids_are_those_of_the_format(demo: City) -> None:
    assert list(demo.geo[0]) == ["geo_id", "type", "coordinates", "length", "highway"]
    assert list(demo.trips["val"][0]) == ["mm_id", "entity_id", "traj_id", "rid_list", "time_list"]
    assert [int(row["geo_id"]) for row in demo.geo] == list(range(len(demo.geo)))


def test_roads_are_polylines_and_some_are_curved(demo: City) -> None:
    counts = [len(points) for points in demo.points]
    assert min(counts) == 2
    assert max(counts) == 6
    assert 0.2 < np.mean(np.array(counts) > 2) < 0.5


def test_length_is_that_of_the_polyline(demo: City) -> None:
    for row, points in zip(demo.geo, demo.points, strict=True):
        lon, lat = np.radians(np.array(points)).T
        half = np.sin(np.diff(lat) / 2) ** 2 + np.cos(lat[1:]) * np.cos(lat[:-1]) * np.sin(np.diff(lon) / 2) ** 2
        length_m = (2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(half))).sum()
        assert float(row["length"]) == pytest.approx(length_m, abs=0.002)


@pytest.mark.parametrize("roads", [60, 1000, 5000])
def test_every_road_can_reach_every_road(tmp_path: Path, roads: int) -> None:
    build_city(tmp_path / "c", CitySpec(roads=roads, trips=20))
    city = City(tmp_path / "c")
    pairs = np.array(city.relations)
    graph = csr_array((np.ones(len(pairs)), pairs.T), shape=(len(city.geo),) * 2)
    assert connected_components(graph, directed=True, connection="strong")[0] == 1


def test_relations_are_all_continuing_roads_but_the_u_turn(demo: City) -> None:
    starting_at: dict[str, list[int]] = {}
    for road, (start, _) in enumerate(demo.ends):
        starting_at.setdefault(start, []).append(road)
    dead_ends = 0
    for road, (start, end) in enumerate(demo.ends):
        onward = [other for other in starting_at[end] if demo.ends[other] != (end, start)]
        dead_ends += not onward
        assert demo.candidates[road] == (onward or starting_at[end])
    assert dead_ends > 0


def test_the_two_directions_of_a_street_have_the_same_points_in_the_same_text(demo: City) -> None:
    texts = [row["coordinates"][2:-2].split("], [") for row in demo.geo]
    by_ends = dict(zip(demo.ends, texts, strict=True))
    assert len(by_ends) == len(texts)
    two_way = [ends for ends in by_ends if ends[::-1] in by_ends]
    assert 0.80 <= len(two_way) / len(texts) <= 0.90
    assert all(by_ends[ends] == by_ends[ends[::-1]][::-1] for ends in two_way)


def test_junctions_lie_apart_from_each_other(demo: City) -> None:
    junctions = {end for ends in demo.ends for end in ends}
    places = np.array([[float(number) for number in text.split(", ")] for text in sorted(junctions)])
    metres = (places - places.mean(axis=0)) * 111_195 * np.array([np.cos(np.radians(55.7)), 1])
    distance_m = np.hypot(*np.moveaxis(metres[:, None] - metres[None], -1, 0))
    assert distance_m[np.triu_indices(len(metres), 1)].min() > 5


def test_highways_are_classes_and_a_few_lists(demo: City) -> None:
    highways = [row["highway"] for row in demo.geo]
    lists = [text for text in highways if text.startswith("['") and text.endswith("']")]
    assert {"primary", "secondary", "tertiary", "residential", "living_street", "unclassified"} <= set(highways)
    assert 0 < len(lists) < 0.03 * len(highways)
    assert all(", '" in text for text in lists)


def test_a_large_city_has_a_ring_road(tmp_path: Path) -> None:
    summary = build_city(tmp_path / "c", CitySpec(roads=20_000, trips=20))
    assert 0.005 < summary.highway_shares["trunk"] < 0.05


# The trips


def test_every_trip_is_a_path_that_uses_no_road_twice(demo: City) -> None:
    for route in demo.routes:
        assert 5 <= len(route) <= 120
        assert len(set(route)) == len(route)
        assert all(then in demo.candidates[road] for road, then in pairwise(route))


def test_times_increase_strictly_and_cover_two_weeks(demo: City) -> None:
    for route, times in zip(demo.routes, demo.times, strict=True):
        assert len(route) == len(times)
        assert all(now < then for now, then in pairwise(times))
    days = {times[0].date().isoformat() for times in demo.times}
    assert (min(days), max(days), len(days)) == ("2015-11-01", "2015-11-14", 14)
    assert all(row["time_list"][:20].endswith("Z") and row["time_list"].endswith("Z") for row in demo.trips["val"])


def test_weekdays_have_two_rush_hours_and_weekends_have_none(demo: City) -> None:
    departures = [times[0] for times in demo.times]
    weekday = np.bincount([at.hour for at in departures if at.weekday() < 5], minlength=24)
    weekend = np.bincount([at.hour for at in departures if at.weekday() >= 5], minlength=24)
    assert min(weekday[7:9].mean(), weekday[17:19].mean()) > 1.3 * weekday[11:15].mean()
    assert weekend.sum() > 0.15 * len(departures)
    assert weekend[7:9].mean() < weekend[13:16].mean()


def test_rush_hour_is_slower_than_the_night(demo: City) -> None:
    length_m = np.array([float(row["length"]) for row in demo.geo])

    def speed_kmh(hours: range) -> float:
        metres = seconds = 0.0
        for route, times in zip(demo.routes, demo.times, strict=True):
            if times[0].weekday() < 5 and times[0].hour in hours:
                metres += length_m[route[:-1]].sum()
                seconds += (times[-1] - times[0]).total_seconds()
        return metres / seconds * 3.6

    assert speed_kmh(range(17, 19)) < 0.85 * speed_kmh(range(5))


def test_drivers_prefer_arterials_clearly(demo: City) -> None:
    arterial = np.array([row["highway"].strip("['").startswith(("primary", "secondary")) for row in demo.geo])
    used = np.concatenate([arterial[route] for route in demo.routes])
    assert used.mean() > 1.8 * arterial.mean()


def test_splits_are_80_10_10_and_disjoint(demo: City) -> None:
    assert {split: len(rows) for split, rows in demo.trips.items()} == {"train": 3200, "val": 400, "test": 400}
    numbers = [int(row["mm_id"]) for rows in demo.trips.values() for row in rows]
    assert sorted(numbers) == list(range(4000))
    drivers = [{row["entity_id"] for row in rows} for rows in demo.trips.values()]
    assert drivers[0] == drivers[1] == drivers[2]


def test_demo_is_worth_learning(demo: City) -> None:
    choices = np.array([len(demo.candidates[road]) for route in demo.routes for road in route[:-1]])
    assert (choices == 1).mean() <= 0.25
    assert 17 <= np.mean([len(route) for route in demo.routes]) <= 26


@pytest.mark.parametrize("trips", [10, 11, 237])
def test_number_of_trips_is_exact_even_in_the_smallest_city(tmp_path: Path, trips: int) -> None:
    summary = build_city(tmp_path / "c", CitySpec(roads=50, trips=trips))
    written = [len(_rows(tmp_path / "c" / f"{split}.csv")) for split in ("train", "val", "test")]
    assert sum(written) == summary.trips == trips
    assert min(written) >= 1


# Building


def test_files_depend_on_roads_trips_and_seed_alone(tmp_path: Path) -> None:
    build_city(tmp_path / "a", CitySpec(name="a", roads=300, trips=100, seed=7))
    other_process = _run("--name", "b", "--roads", 300, "--trips", 100, "--seed", 7, "--data_dir", tmp_path / "b")
    assert other_process.returncode == 0
    build_city(tmp_path / "c", CitySpec(name="a", roads=300, trips=100, seed=8))
    a, b, c = (_contents(tmp_path / name) for name in "abc")
    assert list(a) == FILES
    assert a == b
    assert all(a[name] != c[name] for name in FILES)


def test_an_existing_folder_is_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"mine.*not empty"):
        build_city(folder, CitySpec(roads=60, trips=10))
    with pytest.raises(UserError, match="is a file"):
        build_city(folder / "notes.txt", CitySpec(roads=60, trips=10))
    assert _contents(folder) == {"notes.txt": b"keep me"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "data" / "new"):
        build_city(folder, CitySpec(roads=60, trips=10))
        assert list(_contents(folder)) == FILES


def test_a_killed_build_leaves_no_city_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    folder = tmp_path / "big"
    arguments = ["--roads", "30000", "--trips", "100000", "--data_dir", str(folder)]
    process = subprocess.Popen([sys.executable, str(TOOL), *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".big.building-*/roadmap.rel")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not folder.exists()

    assert _run("--roads", 60, "--trips", 10, "--data_dir", folder).returncode == 0
    assert list(_contents(folder)) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_a_build_in_progress_is_not_taken_for_a_killed_one(tmp_path: Path) -> None:
    in_use, abandoned = tmp_path / ".c.building-1", tmp_path / ".c.building-2"
    in_use.mkdir()
    abandoned.mkdir()
    lock = os.open(in_use, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    build_city(tmp_path / "c", CitySpec(roads=60, trips=10))
    os.close(lock)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.building-1", "c"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.data.synthetic.writer.os.fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        build_city(tmp_path / "c", CitySpec(roads=60, trips=10))
    assert list(tmp_path.iterdir()) == []


# The command line


def test_command_line_prints_a_summary_from_any_folder(tmp_path: Path) -> None:
    done = _run("--name", "X-1", "--roads", 80, "--trips", 30, "--seed", 2, "--data_dir", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in (
        "X-1",
        "roads",
        "junctions",
        "relations",
        "one-way",
        "residential",
        "median",
        "km",
        "single candidate",
    ):
        assert word in done.stdout
    assert list(_contents(tmp_path / "out")) == FILES


@pytest.mark.parametrize(
    "arguments",
    [
        ["--roads", "49"],
        ["--roads", "1200001"],
        ["--roads", "many"],
        ["--trips", "9"],
        ["--seed", "-1"],
        ["--name", ".hidden"],
        ["--name", "../up"],
        ["--name", ""],
        ["--colour", "red"],
    ],
)
def test_bad_arguments_exit_with_2(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments, "--data_dir", str(tmp_path / "c")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_an_occupied_folder_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    done = _run("--roads", 60, "--trips", 10, "--data_dir", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "not empty" in done.stderr
    assert _contents(tmp_path) == {"notes.txt": b"keep me"}
