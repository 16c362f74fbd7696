"""Generated trips are read in each form that they have, and found beside the real trips of their queries."""

from pathlib import Path

import numpy as np
import pytest
from helpers import chain, error_of, time_list, trip, write_lines, write_roads, write_trips

from utils.data.road_network import RoadNetwork, read_road_network
from utils.data.trips import Trips, read_trips
from utils.generation.trip_files import COLUMNS
from utils.judging.generated import are_sampled_from, match_queries, reaches, read_generated

HEADER = ",".join(COLUMNS)
PUBLIC = "gene_trace_road_id,gene_trace_datetime"
START = time_list(1)


@pytest.fixture
def network(tmp_path: Path) -> RoadNetwork:
    """Roads 0 to 7, one after the other, and a way from 1 to 3."""
    relations = [(i, i + 1) for i in range(7)] + [(1, 3)]
    return read_road_network(write_roads(tmp_path / "city", chain(8), relations))


def own_row(roads: str, row: int, destination: int | None = None, rank: int = 1, start: str = START) -> str:
    """A row as tools/generate.py writes it."""
    first, last = roads.split(",")[0], roads.split(",")[-1]
    status = "reached" if destination in (None, int(last)) else "limit"
    destination = last if destination is None else destination
    return f"{trip(roads)},{first},{destination},{start},{row},{rank},{status},-1.5,7"


def public_row(roads: str) -> str:
    times = [f"'{time}'" for time in time_list(roads.count(",") + 1).split(",")]
    return f'"[{roads.replace(",", ", ")}]","[{", ".join(times)}]"'


def real_trips(folder: Path, network: RoadNetwork, *rows: str) -> Trips:
    return read_trips(write_trips(folder / "test.csv", *map(trip, rows)), network)


def test_both_forms_of_a_file_give_the_same_trips(tmp_path: Path, network: RoadNetwork) -> None:
    trips = ["0,1,2", "3", "1,3,4"]  # one road is a trip, too: origin and destination may be the same
    own = write_lines(tmp_path / "own.csv", HEADER, *(own_row(roads, i) for i, roads in enumerate(trips)))
    public = write_lines(tmp_path / "public.csv", PUBLIC, *map(public_row, trips))
    plain = write_trips(tmp_path / "plain.csv", *map(trip, trips))
    first, *others = (read_generated(path, network) for path in (own, public, plain))
    for other in others:
        for name in ("offset", "road_id", "time_s", "label"):
            assert np.array_equal(getattr(first.trips, name), getattr(other.trips, name)), name
        assert other.start_s.tolist() == first.start_s.tolist() and other.origin.tolist() == [0, 3, 1]
    assert first.destination.tolist() == [2, 3, 4] and others[0].destination.tolist() == [-1, -1, -1]


def test_of_each_query_the_first_trip_counts(tmp_path: Path, network: RoadNetwork) -> None:
    rows = [own_row("0,1,2,3", 0), own_row("0,1,3", 0, rank=2), own_row("4,5", 1), own_row("4,5", 1, rank=2)]
    generated = read_generated(write_lines(tmp_path / "trips.csv", HEADER, *rows), network)
    assert generated.row.tolist() == [0, 1] and len(generated.trips.road_id) == 6


def test_trips_of_one_road_and_missed_ones_beside_the_file_are_read_too(tmp_path: Path, network: RoadNetwork) -> None:
    write_lines(tmp_path / "trips.csv", HEADER, own_row("0,1,2", 0), own_row("4,5", 3))
    write_lines(tmp_path / "short.csv", HEADER, own_row("6", 1))
    write_lines(tmp_path / "missed.csv", HEADER, own_row("0,1", 2, destination=6))
    for path in (tmp_path, tmp_path / "trips.csv"):
        generated = read_generated(path, network)
        assert generated.row.tolist() == [0, 1, 2, 3]
        assert generated.destination.tolist() == [2, 6, 6, 5]


def test_a_trip_is_beside_the_real_trip_of_its_query(tmp_path: Path, network: RoadNetwork) -> None:
    real = real_trips(tmp_path, network, "0,1,2", "0,1,3,4", "4,5,6")
    # In another order than the real trips; the last one is for a query that no real trip is of.
    rows = [own_row("4,5", 2, destination=6), own_row("0,1,2,3,4", 1), own_row("0,1,3", 0, destination=2)]
    rows.append(own_row("5,6", 3))
    generated = read_generated(write_lines(tmp_path / "made.csv", HEADER, *rows), network)
    match = match_queries(generated, real)
    assert match.tolist() == [2, 1, 0, -1]
    assert reaches(generated, real, match)[:3].tolist() == [False, True, False]


def test_published_columns_have_no_destination_so_the_row_decides(tmp_path: Path, network: RoadNetwork) -> None:
    real = real_trips(tmp_path, network, "0,1,2", "0,1,3,4", "4,5,6")
    made = write_lines(tmp_path / "made.csv", PUBLIC, *map(public_row, ["0,1,3", "0,1,2,3,4", "4,5"]))
    generated = read_generated(made, network)
    match = match_queries(generated, real)
    assert match.tolist() == [0, 1, 2]
    assert reaches(generated, real, match).tolist() == [False, True, False]


def test_queries_that_were_sampled_from_train_are_recognised(tmp_path: Path, network: RoadNetwork) -> None:
    train = real_trips(tmp_path, network, "0,1,2", "4,5,6")
    sampled, others = (
        read_generated(write_lines(tmp_path / f"{i}.csv", HEADER, own_row(roads, 0)), network)
        for i, roads in enumerate(["4,5,6", "4,5,6,7"])
    )
    later = own_row("4,5,6", 0, start="2016-01-01T00:00:00Z")
    another_time = read_generated(write_lines(tmp_path / "later.csv", HEADER, later), network)
    assert are_sampled_from(sampled, train)
    assert not are_sampled_from(others, train) and not are_sampled_from(another_time, train)


def test_a_road_that_cannot_follow_is_measured_not_refused(tmp_path: Path, network: RoadNetwork) -> None:
    rows = [own_row("0,1,2,3", 0), own_row("3,4,6", 1)]
    generated = read_generated(write_lines(tmp_path / "made.csv", HEADER, *rows), network)
    assert (generated.trips.label < 0).tolist() == [False] * 5 + [True, False]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], ": the file is empty, expected generated trips"),
        ([HEADER], ": no trips"),
        (["a,b", "1,2"], "line 1: found the columns a, b, expected rid_list, time_list, or gene_trace_road_id, gene_t"),
        (
            [PUBLIC, public_row("0,1"), public_row("1,99")],
            "line 3: trip 2: position 2: found road 99, expected ids fro",
        ),
        ([HEADER, own_row("0,4,2,7", 0)], "line 2: roadmap.rel does not connect road 0 to road 4, nor the roads of 3 "),
        ([PUBLIC, '"[0, x]","[]"'], "line 2: trip 1: rid_list: found 'x', expected road ids"),
        ([HEADER, own_row("0,1", 0).replace(f",{START},0,1", f",{START},zero,1")], "source_row: found 'zero', expect"),
        ([HEADER, own_row("0,1", 0, start="noon")], "start_time: found 'noon', expected a time"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    lines: list[str], message: str, tmp_path: Path, network: RoadNetwork
) -> None:
    path = write_lines(tmp_path / "made.csv", *lines)
    found = error_of(read_generated, path, network)
    assert str(path) in found and message in found


def test_malformed_trips_can_be_left_out(tmp_path: Path, network: RoadNetwork) -> None:
    path = write_lines(tmp_path / "made.csv", PUBLIC, public_row("0,1"), public_row("1,99"))
    assert len(read_generated(path, network, on_bad_trip="skip")) == 1
