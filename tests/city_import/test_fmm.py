"""Results of FMM on a graph of OSMnx: edges become the roads that they are part of."""

from pathlib import Path

import networkx
import pytest
from helpers import write_lines

pytest.importorskip("osmium")

from utils.city_import.fmm import FmmTrips, read_fmm
from utils.city_import.graphml import read_graphml
from utils.city_import.network import City, build_city
from utils.city_import.tags import RoadChoice
from utils.city_import.trace_columns import find_format

# Junctions 3 and 6; 1, 2 and 5 are none, so the edges at them are parts of one road.
NODES = {1: (10.0, 50.0), 2: (10.01, 50.0), 3: (10.02, 50.0), 4: (10.0, 50.01), 5: (10.02, 50.01), 6: (10.03, 50.0)}
NODES[7] = (10.04, 50.0)
EDGES = [(1, 2), (2, 3), (3, 6), (1, 4), (3, 5), (6, 5), (6, 7)]  # and back


def make_city(folder: Path) -> tuple[City, dict[tuple[int, int], int]]:
    """The city, and the number of each edge."""
    graph = networkx.MultiDiGraph(crs="epsg:4326")
    for node, (x, y) in NODES.items():
        graph.add_node(node, x=str(x), y=str(y))
    numbers = {}
    for number, edge in enumerate([*EDGES, *((v, u) for u, v in EDGES)]):
        graph.add_edge(*edge, highway="primary", osmid="1", fid=str(100 + number))
        numbers[edge] = 100 + number
    networkx.write_graphml(graph, folder / "a.graphml")
    path = folder / "a.graphml"
    return build_city(read_graphml(path, RoadChoice.parse("drive"), None), "dead_ends", path), numbers


def read(folder: Path, *rows: str) -> tuple[City, FmmTrips]:
    """The trips of rows in which edges are written as `1-2`."""
    city, numbers = make_city(folder)
    for (u, v), number in numbers.items():
        rows = tuple(row.replace(f"{u}-{v}", str(number)) for row in rows)
    path = write_lines(folder / "fmm.csv", "id;cpath;opath;offset;length;timestamp", *rows)
    return city, read_fmm(path, find_format(path, {}), False, None, city)


def ends(city: City, roads: list[int]) -> list[tuple[int, int]]:
    return [(city.roads[road].nodes[0], city.roads[road].nodes[-1]) for road in roads]


def test_edges_of_one_road_are_one_entry(tmp_path: Path) -> None:
    city, trips = read(tmp_path, "a;4-1,1-2,2-3,3-6;;;;0,100,150,200")
    assert ends(city, trips.drives[0].roads.tolist()) == [(4, 3), (3, 6)]
    assert trips.drives[0].time_s.tolist() == [0, 200]


def test_times_of_fixes_are_interpolated_along_the_edges(tmp_path: Path) -> None:
    # From the middle of the first edge (1,112 m) to the middle of the last (715 m), with two of 715 m between them.
    _, trips = read(tmp_path, "a;4-1,1-2,2-3,3-6;4-1,3-6;5,5;10,10;0,100")
    expected = (1112 / 2 + 2 * 715) / (1112 / 2 + 2 * 715 + 715 / 2)
    assert trips.drives[0].time_s.tolist() == [0, int(100 * expected)]


def test_a_trip_is_cut_where_the_city_has_no_road_or_turn(tmp_path: Path) -> None:
    city, trips = read(tmp_path, "a;1-2,2-3,3-6,999,6-7,3-5;;;;0,10,20,30,40,50")
    assert [ends(city, drive.roads.tolist()) for drive in trips.drives] == [[(4, 3), (3, 6)], [(6, 7)], [(3, 6)]]
    assert trips.counts["roads of paths that the city does not have"] == 1
    assert trips.counts["trips cut where no road leads on"] == 1
