"""The matcher: near roads, shortest ways, and what it makes of fixes that are easy to judge by eye."""

import itertools

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from utils.city_import.matching import Fixes, Matcher, MatchOptions
from utils.city_import.routes import Routes
from utils.city_import.shapes import RoadShapes
from utils.data.geometry import EARTH_RADIUS_M
from utils.data.synthetic.network import CityNetwork, build_network

DEGREE_M = np.radians(1.0) * EARTH_RADIUS_M


@pytest.fixture(scope="module")
def network() -> CityNetwork:
    """About 300 roads."""
    return build_network(300, seed=4)


def shapes_of(network: CityNetwork) -> RoadShapes:
    return RoadShapes.from_lines(np.stack([network.lon, network.lat], axis=1), network.point_ptr)


@pytest.mark.slow
def test_candidates_are_the_nearest_roads_within_the_radius(network: CityNetwork) -> None:
    shapes = shapes_of(network)
    points = np.random.default_rng(0).uniform(shapes.xy_m.min(axis=0), shapes.xy_m.max(axis=0), (40, 2))
    found = shapes.candidates(points, radius_m=80.0, most=6)
    for point, roads, along, distance in zip(points, found.road, found.along_m, found.distance_m, strict=True):
        everywhere = []
        for road in range(network.roads):
            line = shapes.xy_m[shapes.offset[road] : shapes.offset[road + 1]]
            at = np.linspace(0, len(line) - 1, 2000)
            dense = np.stack([np.interp(at, np.arange(len(line)), axis) for axis in line.T], axis=1)
            everywhere.append(np.hypot(*(dense - point).T).min())
        expected = np.sort([value for value in everywhere if value <= 80.0])[:6]
        assert np.allclose(distance[: len(expected)], expected, atol=0.3)
        assert (roads[len(expected) :] == -1).all()
        for road, metres, value in zip(roads[: len(expected)].tolist(), along, distance, strict=False):
            line = slice(shapes.offset[road], shapes.offset[road + 1])
            place = [np.interp(metres, shapes.along_m[line], axis) for axis in shapes.xy_m[line].T]
            assert np.hypot(*(place - point)) == pytest.approx(value, abs=0.01)


def test_ways_are_the_shortest_whatever_was_asked_before(network: CityNetwork) -> None:
    shapes = shapes_of(network)
    pairs = np.stack([network.origin, network.destination], axis=1)
    routes = Routes(pairs, shapes.length_m, shapes.start_m, np.zeros(len(pairs)))
    graph = csr_array((shapes.length_m[pairs[:, 0]], pairs.T), shape=(network.roads,) * 2)
    exact = dijkstra(graph)
    rng = np.random.default_rng(1)
    for limit in (400.0, 1500.0, 400.0):
        origin, destination = rng.integers(0, network.roads, (2, 3000))
        expected = exact[origin, destination]
        found = routes.distances(origin, destination, limit)
        assert np.allclose(found[expected <= limit], expected[expected <= limit], rtol=1e-5)
        assert np.isinf(found[expected > limit]).all()
        there = np.isfinite(found)
        for path, metres in zip(routes.paths(origin[there], destination[there], limit), found[there], strict=True):
            assert all((graph[i, j] > 0) for i, j in itertools.pairwise(path))
            assert shapes.length_m[path[:-1]].sum() == pytest.approx(metres, rel=1e-5)


# Two streets eastwards, 40 m apart, joined by short ones each 200 m: along the south 0 to 4, along the north 5 to 9.
def ladder() -> tuple[RoadShapes, np.ndarray]:
    """Its roads, all one-way eastwards or northwards."""
    lines = [[(200 * i, y), (200 * (i + 1), y)] for y in (0, 40) for i in range(5)]
    lines += [[(200 * i, 0), (200 * i, 40)] for i in range(6)]
    points = np.array([point for line in lines for point in line], dtype=np.float64) / DEGREE_M
    ends = np.array(lines)
    pairs = [(i, j) for i in range(16) for j in range(16) if (ends[i, 1] == ends[j, 0]).all()]
    return RoadShapes.from_lines(points, 2 * np.arange(17)), np.array(pairs)


def match(*fixes: tuple[float, float, float]) -> list[list[int]]:
    """The roads of fixes (time, metres east, metres north) on the ladder."""
    shapes, pairs = ladder()
    time_s, x, y = np.array(fixes).T
    xy = shapes.to_plane(np.stack([x, y], axis=1) / DEGREE_M)
    found = Matcher(shapes, pairs, MatchOptions(noise_m=10.0, max_speed_m_s=40.0))
    return [item.roads for item in found.match(Fixes(np.array([0, len(time_s)]), time_s, xy)).matches]


def test_a_trip_keeps_to_its_street_though_one_fix_is_nearer_to_another() -> None:
    fixes = [(0, 50, 5), (15, 200, -5), (30, 350, 22), (45, 500, 3), (60, 650, 0)]
    assert match(*fixes) == [[0, 1, 2, 3]]


def test_a_trip_that_changes_streets_is_followed() -> None:
    fixes = [(0, 50, 0), (15, 200, 0), (30, 350, 5), (45, 450, 38), (60, 600, 42), (75, 750, 40)]
    assert match(*fixes) == [[0, 1, 12, 7, 8]]


def test_missing_fixes_are_bridged() -> None:
    assert match((0, 50, 0), (60, 950, 2)) == [[0, 1, 2, 3, 4]]


def test_a_fix_that_nothing_leads_to_is_left_out_and_a_way_back_cuts_the_trip() -> None:
    # Nobody drives westwards here.
    fixes = [(0, 450, 0), (15, 600, 0), (30, 150, 0), (45, 750, 0), (60, 900, 0)]
    assert match(*fixes) == [[2, 3, 4]]
    back = [(75, 150, 0), (90, 300, 0), (105, 450, 0)]
    assert match(*[fix for fix in fixes if fix[1] != 150], *back) == [[2, 3, 4], [0, 1, 2]]


def test_trips_of_a_block_do_not_depend_on_each_other() -> None:
    shapes, pairs = ladder()
    matcher = Matcher(shapes, pairs, MatchOptions(10.0, 40.0))
    xy = shapes.to_plane(np.array([[50, 0], [350, 5], [450, 38], [50, 40], [100, 5000], [800, 40]]) / DEGREE_M)
    both = matcher.match(Fixes(np.array([0, 3, 3, 6]), np.array([0.0, 30, 45, 0, 10, 75]), xy))
    assert [(item.trip, item.roads) for item in both.matches] == [(0, [0, 1, 12, 7]), (2, [5, 6, 7, 8])]
    assert both.far == 1
