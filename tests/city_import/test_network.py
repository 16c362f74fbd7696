"""Roads and relations from a map: what is split, joined, kept, dropped and refused."""

import csv
import math
from pathlib import Path

import pytest
from helpers import error_of, write_lines
from osm_files import write_map

pytest.importorskip("osmium")

import networkx
import osmium

from utils.city_import.graphml import read_graphml
from utils.city_import.network import City, build_city, write_city
from utils.city_import.osm import read_osm
from utils.city_import.tags import RoadChoice
from utils.data.road_network import read_road_network

# A cross: 1 in the middle, 2 east, 3 north, 4 west, 5 south.
CROSS = {1: (0, 0), 2: (2, 0), 3: (0, 2), 4: (-2, 0), 5: (0, -2)}
STREETS = [(10, [4, 1, 2], "highway=primary"), (20, [5, 1, 3], "highway=residential")]


def read(path: Path, network: str = "drive", u_turns: str = "dead_ends", box=None) -> tuple[City, dict[str, int]]:
    """The city of a map, and what was counted."""
    streets = (read_graphml if path.suffix == ".graphml" else read_osm)(path, RoadChoice.parse(network), box)
    city = build_city(streets, u_turns, path)
    return city, dict(+streets.counts)


def steps(city: City) -> set[tuple[int, int]]:
    """Roads by their first and last node."""
    return {(road.nodes[0], road.nodes[-1]) for road in city.roads}


def turns(city: City) -> set[tuple[int, int, int]]:
    """Relations by the nodes before, at and behind the turn."""
    return {(city.roads[i].nodes[0], city.roads[i].nodes[-1], city.roads[j].nodes[-1]) for i, j in city.pairs.tolist()}


def test_ways_are_split_where_they_cross_and_each_direction_is_a_road(tmp_path: Path) -> None:
    city, _ = read(write_map(tmp_path / "a.osm", CROSS, STREETS))
    assert steps(city) == {(1, n) for n in (2, 3, 4, 5)} | {(n, 1) for n in (2, 3, 4, 5)}
    assert {road.highway for road in city.roads if 2 in road.nodes} == {"primary"}


@pytest.mark.parametrize(
    ("u_turns", "expected"),
    [("dead_ends", {(1, 2, 1), (1, 3, 1), (1, 4, 1), (1, 5, 1)}), ("always", {(2, 1, 2), (1, 2, 1)})],
)
def test_u_turns_are_at_dead_ends_or_everywhere(tmp_path: Path, u_turns: str, expected: set) -> None:
    city, _ = read(write_map(tmp_path / "a.osm", CROSS, STREETS), u_turns=u_turns)
    backwards = {turn for turn in turns(city) if turn[0] == turn[2]}
    assert expected <= backwards
    assert u_turns == "always" or backwards == expected


def test_without_u_turns_dead_ends_are_no_part_of_the_city(tmp_path: Path) -> None:
    ways = [
        (10, [1, 2, 3, 1], "highway=primary"),
        (20, [1, 5], "highway=primary"),
        (30, [4, 1, 3, 4], "highway=primary"),
    ]
    city, counts = read(write_map(tmp_path / "a.osm", CROSS, ways), u_turns="never")
    assert not any(5 in road.nodes for road in city.roads)
    assert counts["roads outside the largest connected part"] == 2


ONE_WAY_RING = [(1, 2), (2, 3), (3, 1)]


@pytest.mark.parametrize(
    ("tags", "forward", "backward"),
    [
        ("highway=primary", True, True),
        ("highway=primary oneway=yes", True, False),
        ("highway=primary oneway=1", True, False),
        ("highway=primary oneway=-1", False, True),
        ("highway=primary oneway=no", True, True),
        ("highway=primary junction=roundabout", True, False),
        ("highway=primary junction=roundabout oneway=no", True, True),
        ("highway=motorway", True, False),
        ("highway=motorway_link", True, False),
        ("highway=motorway_link oneway=no", True, True),
        ("highway=trunk_link", True, True),
    ],
)
def test_the_directions_of_a_way(tmp_path: Path, tags: str, forward: bool, backward: bool) -> None:
    # Side streets make junctions of all corners.
    ways = [(10, [1, 2, 3, 1], tags), (20, [1, 4], "highway=primary"), (21, [2, 5], "highway=primary")]
    city, _ = read(write_map(tmp_path / "a.osm", {**CROSS, 6: (3, 3)}, [*ways, (22, [3, 6], "highway=primary")]))
    ring = set(ONE_WAY_RING)
    assert (ring <= steps(city), {(b, a) for a, b in ring} <= steps(city)) == (forward, backward)


def test_ways_that_follow_each_other_are_one_road_with_a_list_of_classes(tmp_path: Path) -> None:
    ways = [
        (10, [4, 1], "highway=primary"),
        (11, [1, 2], "highway=trunk"),
        (12, [2, 3], "highway=secondary"),
        (13, [3, 5, 4], "highway=residential"),
        (14, [4, 6], "highway=residential"),
        (15, [2, 7], "highway=residential"),
    ]
    city, _ = read(write_map(tmp_path / "a.osm", {**CROSS, 6: (-4, 0), 7: (4, 0)}, ways))
    joined = next(road for road in city.roads if (road.nodes[0], road.nodes[-1], len(road.nodes)) == (4, 2, 3))
    back = next(road for road in city.roads if (road.nodes[0], road.nodes[-1], len(road.nodes)) == (2, 4, 3))
    assert (joined.nodes, joined.ways, back.ways) == ([4, 1, 2], ["10", "11"], ["11", "10"])
    assert joined.highway == back.highway == "['primary', 'trunk']"
    # A road where one may drive back is not joined to one where one may not.
    oneway = [(10, [4, 1], "highway=primary"), (11, [1, 2], "highway=trunk oneway=yes"), *ways[2:]]
    city, _ = read(write_map(tmp_path / "b.osm", {**CROSS, 6: (-4, 0), 7: (4, 0)}, oneway))
    assert [1, 2] in [road.nodes for road in city.roads] and [4, 1, 2] not in [road.nodes for road in city.roads]


@pytest.mark.parametrize(
    ("kind", "forbidden"),
    [
        ("no_left_turn", {(5, 1, 4)}),
        ("only_left_turn", {(5, 1, 2), (5, 1, 3)}),
        ("no_left_turn except=bus;motorcar", set()),
        ("give_way", set()),
    ],
)
def test_turn_restrictions_are_obeyed(tmp_path: Path, kind: str, forbidden: set) -> None:
    ways = [(10, [4, 1], "highway=primary"), (11, [1, 2], "highway=primary"), (20, [5, 1], "highway=primary")]
    ways.append((21, [1, 3], "highway=primary"))
    free, _ = read(write_map(tmp_path / "a.osm", CROSS, ways))
    city, counts = read(write_map(tmp_path / "b.osm", CROSS, ways, [(kind, 20, 1, 10)]))
    assert turns(free) - turns(city) == forbidden
    assert counts.get("turns that restrictions forbid", 0) == len(forbidden)


@pytest.mark.parametrize(("u_turns", "forbidden"), [("dead_ends", set()), ("always", {(4, 1, 4), (2, 1, 2)})])
def test_a_ban_on_u_turns_from_a_way_into_itself_leaves_the_way_on(
    tmp_path: Path, u_turns: str, forbidden: set
) -> None:
    free, _ = read(write_map(tmp_path / "a.osm", CROSS, STREETS), u_turns=u_turns)
    city, _ = read(write_map(tmp_path / "b.osm", CROSS, STREETS, [("no_u_turn", 10, 1, 10)]), u_turns=u_turns)
    assert turns(free) - turns(city) == forbidden


def test_an_order_to_go_on_along_a_way_forbids_the_way_back(tmp_path: Path) -> None:
    path = write_map(tmp_path / "a.osm", CROSS, STREETS, [("only_straight_on", 10, 1, 10)])
    city, _ = read(path, u_turns="always")
    assert {turn for turn in turns(city) if turn[:2] == (4, 1)} == {(4, 1, 2)}


def test_a_restriction_at_a_node_that_the_map_has_twice_is_obeyed(tmp_path: Path) -> None:
    ways = [(10, [4, 1], "highway=primary"), (11, [1, 2], "highway=primary"), (20, [5, 9], "highway=residential")]
    ways.append((21, [9, 3], "highway=residential"))
    city, _ = read(write_map(tmp_path / "a.osm", {**CROSS, 9: CROSS[1]}, ways, [("no_left_turn", 20, 9, 10)]))
    assert (5, 1, 2) in turns(city) and (5, 1, 4) not in turns(city)


def test_roads_without_a_way_back_are_no_city(tmp_path: Path) -> None:
    path = write_map(tmp_path / "a.osm", CROSS, [(10, [4, 1, 2], "highway=primary oneway=yes")])
    assert "no road can be reached from another one and back" in error_of(read, path)
    ways = [(10, [4, 1, 2], "highway=primary oneway=yes"), (20, [1, 3], "highway=primary oneway=yes")]
    path = write_map(tmp_path / "b.osm", CROSS, ways)
    assert "no road can be reached from another one and back" in error_of(read, path)


def test_loops_and_parallel_roads_are_roads_of_their_own(tmp_path: Path) -> None:
    nodes = {**CROSS, 6: (3, 1), 7: (3, -1), 8: (-1, 1)}
    ways = [*STREETS, (30, [2, 6, 7, 2], "highway=service"), (40, [4, 8, 1], "highway=primary")]
    ways.append((50, [4, 5], "highway=primary"))
    city, _ = read(write_map(tmp_path / "a.osm", nodes, ways), network="primary,residential,service")
    loops = [number for number, road in enumerate(city.roads) if road.nodes[0] == road.nodes[-1]]
    assert sorted(city.roads[loop].nodes for loop in loops) == [[2, 6, 7, 2], [2, 7, 6, 2]]
    assert not any(i == j for i, j in city.pairs.tolist())
    parallel = sorted(road.nodes for road in city.roads if (road.nodes[0], road.nodes[-1]) == (4, 1))
    assert parallel == [[4, 1], [4, 5, 1], [4, 8, 1]]


def test_what_a_map_has_twice_is_taken_once(tmp_path: Path) -> None:
    nodes = {**CROSS, 9: CROSS[1]}  # at the place of node 1
    ways = [(10, [4, 1, 2], "highway=primary"), (20, [5, 9, 9, 3], "highway=primary"), (30, [1, 2], "highway=primary")]
    city, counts = read(write_map(tmp_path / "a.osm", nodes, ways))
    assert len(city.roads) == 8
    assert counts == {
        "nodes at the place of another one, merged": 1,
        "streets along the same line as another one": 1,
    }
    # A bridge is not a crossing, even with a node right above another one.
    ways = [
        (10, [4, 1, 2, 3], "highway=primary"),
        (20, [5, 9, 3, 6], "highway=primary layer=1 bridge=yes"),
        (30, [4, 5], "highway=primary"),
        (40, [5, 7], "highway=primary"),
    ]
    city, counts = read(write_map(tmp_path / "b.osm", {**nodes, 6: (0, 4), 7: (0, -4)}, ways))
    assert "nodes at the place of another one, merged" not in counts
    assert (5, 3) in steps(city)


def test_ways_without_their_nodes_are_left_out_or_cut(tmp_path: Path) -> None:
    ways = [
        *STREETS,
        (30, [], "highway=primary"),
        (31, [2], "highway=primary"),
        (32, [98, 99], "highway=primary"),
        (33, [2, 3, 99], "highway=primary"),
        (34, [2, 6], "highway=primary"),
        (35, [3, 7], "highway=primary"),
    ]
    city, counts = read(write_map(tmp_path / "a.osm", {**CROSS, 6: (4, 0), 7: (0, 4)}, ways))
    assert {(2, 3), (3, 2)} <= steps(city)
    assert counts["ways without two nodes in the file"] == 3
    assert counts["ways that the edge of the file or of --bbox cuts"] == 1


def test_the_largest_connected_part_is_kept_and_the_rest_is_counted(tmp_path: Path) -> None:
    island = {11: (10, 10), 12: (12, 10)}
    ways = [*STREETS, (30, [11, 12], "highway=primary"), (31, [1, 11], "highway=primary oneway=yes")]
    city, counts = read(write_map(tmp_path / "a.osm", {**CROSS, **island}, ways))
    assert len(city.roads) == 8
    assert counts["roads outside the largest connected part"] == 3


@pytest.mark.parametrize(
    ("network", "classes"),
    [
        ("drive", {"primary", "residential"}),
        ("all", {"primary", "residential", "service", "footway"}),
        ("primary,service", {"primary", "service"}),
    ],
)
def test_which_ways_are_roads(tmp_path: Path, network: str, classes: set[str]) -> None:
    ways = [
        (1, [1, 2], "highway=primary"),
        (2, [1, 3], "highway=residential"),
        (3, [1, 4], "highway=service"),
        (4, [1, 5], "highway=footway"),
        (5, [2, 3], "highway=construction"),
        (6, [3, 4], "highway=residential access=private" if network == "drive" else "building=yes"),
        (7, [3, 5], "highway=residential motor_vehicle=no" if network == "drive" else "highway=primary area=yes"),
    ]
    ways.append((8, [1, 6], "highway=primary"))
    city, _ = read(write_map(tmp_path / "a.osm", {**CROSS, 6: (2, 2)}, ways), network=network)
    assert {road.highway for road in city.roads} == classes
    assert (3, 4) not in steps(city) and (3, 5) not in steps(city)


def test_a_box_is_cut_out(tmp_path: Path) -> None:
    city, counts = read(write_map(tmp_path / "a.osm", CROSS, STREETS), box=(9.99, 49.99, 10.001, 50.01))
    assert not any(2 in road.nodes for road in city.roads)
    assert counts["ways that the edge of the file or of --bbox cuts"] == 1


def test_a_city_across_the_180th_meridian_is_refused(tmp_path: Path) -> None:
    east = (180 - 10.0) / 0.0014
    path = write_map(
        tmp_path / "a.osm", {1: (east - 1, 0), 2: (east - 360 / 0.0014 + 1, 0)}, [(1, [1, 2], "highway=primary")]
    )
    assert "across the 180th meridian cannot be imported" in error_of(read, path)


def test_the_files_are_those_that_training_reads(tmp_path: Path) -> None:
    city, _ = read(write_map(tmp_path / "a.osm", CROSS, STREETS))
    write_city(tmp_path, city)
    network = read_road_network(tmp_path)
    assert network.num_roads == 8
    # Lengths in metres on the sphere; 0.0014 degrees of longitude at 50 degrees north are 100.07 m.
    east = next(i for i, road in enumerate(city.roads) if (road.nodes[0], road.nodes[-1]) == (1, 2))
    expected_m = math.radians(0.0028) * 6_371_008.8 * math.cos(math.radians(50))
    assert city.roads[east].length_m == pytest.approx(expected_m, rel=1e-6)
    # All eight roads meet at node 1, so each is adjacent to the seven others.
    assert network.road_edge_index.shape[1] == 8 * 7
    with (tmp_path / "roads.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["geo_id"] for row in rows] == [str(i) for i in range(8)]
    assert (rows[east]["way_ids"], rows[east]["node_ids"]) == ("10", "1;2")


def test_pbf_and_xml_give_the_same_city(tmp_path: Path) -> None:
    path = write_map(tmp_path / "a.osm", CROSS, STREETS, [("no_left_turn", 20, 1, 10)])
    with osmium.SimpleWriter(str(tmp_path / "a.osm.pbf")) as writer:
        for item in osmium.FileProcessor(str(path)):
            writer.add(item)
    for name in ("a.osm", "a.osm.pbf"):
        city, _ = read(tmp_path / name)
        write_city(tmp_path / name.replace(".", "_"), city)
    one, other = tmp_path / "a_osm", tmp_path / "a_osm_pbf"
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in ("roadmap.geo", "roadmap.rel"))


def make_graph() -> networkx.MultiDiGraph:
    """A graph as OSMnx simplifies and saves it: all values are texts."""
    graph = networkx.MultiDiGraph(crs="epsg:4326", simplified="True")
    places = {1: (10.0, 50.0), 2: (10.01, 50.0), 3: (10.0, 50.01), 4: (9.99, 50.0)}
    for node, (x, y) in places.items():
        graph.add_node(node, x=str(x), y=str(y))
    line = "LINESTRING (10 50, 10.005 50.001, 10.01 50)"
    back = "LINESTRING (10.01 50, 10.005 50.001, 10 50)"
    names = "['primary', 'unclassified']"
    graph.add_edge(1, 2, osmid="[7, 8]", highway=names, geometry=line, length="740.1", oneway="False", reversed="False")
    graph.add_edge(2, 1, osmid="[7, 8]", highway=names, geometry=back, length="740.1", oneway="False", reversed="True")
    graph.add_edge(2, 3, osmid="9", highway="residential", length="1322.7", oneway="True", reversed="False")
    graph.add_edge(3, 1, osmid="9", highway="residential", length="1112.0", oneway="True", reversed="False")
    for u, v in ((1, 3), (1, 4), (4, 1)):
        graph.add_edge(u, v, osmid="11", highway="residential", length="1112.0", oneway="False", reversed="False")
    return graph


def test_a_graph_of_osmnx_is_read(tmp_path: Path) -> None:
    networkx.write_graphml(make_graph(), tmp_path / "a.graphml")
    city, _ = read(tmp_path / "a.graphml")
    main = next(road for road in city.roads if (road.nodes[0], road.nodes[-1]) == (1, 2))
    assert (main.highway, main.ways) == ("['primary', 'unclassified']", ["7", "8"])
    assert main.points == [(10.0, 50.0), (10.005, 50.001), (10.01, 50.0)]
    # The edges from 1 to 2 and back are one street, so the one is the U-turn of the other.
    assert (1, 2, 1) not in turns(city) and (1, 2, 3) in turns(city)
    # Nobody who arrives at 2 may turn back, so edge 3 is dropped.
    assert sorted(edge for road in city.roads for edge in road.edges) == [0, 1, 2, 4, 5, 6]


def test_a_projected_graph_is_refused(tmp_path: Path) -> None:
    graph = make_graph()
    graph.nodes[1]["x"] = "550000.0"
    networkx.write_graphml(graph, tmp_path / "a.graphml")
    assert "before osmnx.project_graph" in error_of(read, tmp_path / "a.graphml")


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("a.osm", ["<osm version='0.6'>", "<node id='1' lat='1' lon='1'>", "</osm>"], "line 3"),
        ("a.osm.pbf", ["not a map"], "not readable as OSM XML or PBF"),
        ("a.osm", ["<osm version='0.6'>", "</osm>"], "no ways that --network takes"),
        ("a.graphml", ["<graphml>", "<node>", "</graphml>"], "a.graphml, line 3: not XML"),
        ("b.osm", ["<html>", "</html>"], "b.osm"),
    ],
)
def test_a_file_that_is_no_map_is_named(tmp_path: Path, name: str, lines: list[str], expected: str) -> None:
    message = error_of(read, write_lines(tmp_path / name, *lines))
    assert name in message and expected in message


def test_a_map_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("a.osm", "a.graphml"):
        assert f"{name}: " in error_of(read, tmp_path / name)


def test_classes_that_are_none_are_refused() -> None:
    assert "expected drive, all, or classes" in error_of(RoadChoice.parse, "Primary Roads")
