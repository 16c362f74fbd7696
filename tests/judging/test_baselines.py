"""Trips without a model: the shortest path, the fastest one, a walk towards the destination."""

from pathlib import Path

import numpy as np
from helpers import trip, write_roads, write_trips

from utils.data.road_network import read_lengths, read_road_network
from utils.data.trips import read_trips
from utils.generation.paths import Query
from utils.judging.baselines import FASTEST, GREEDY, SHORTEST, baseline_trips, road_seconds

# From 0 to 5: by 1 and 2 (short and slow), by 3 (long and fast), or into the dead end 4, which is the nearest to 5.
PLACES = [(0, 0), (1, 0), (2, 0), (1, 3), (3, 1), (5, 0), (9, 9)]
RELATIONS = [(0, 1), (0, 3), (0, 4), (1, 2), (2, 5), (3, 5), (5, 0)]
LENGTHS = [100, 100, 100, 300, 100, 100, 100]
HIGHWAYS = ["slow", "slow", "slow", "fast", "slow", "slow", "slow"]
QUERIES = [Query(0, 5, 1000, 0), Query(0, 6, 2000, 1), Query(5, 2, 3000, 2), Query(4, 4, 4000, 3)]


def test_each_baseline_takes_its_path_and_its_time(tmp_path: Path) -> None:
    lines = [f"[[116.{300 + x}, 39.{900 + y}], [116.{300 + x}5, 39.{900 + y}]]" for x, y in PLACES]
    write_roads(tmp_path, lines, RELATIONS, HIGHWAYS, [str(length) for length in LENGTHS])
    network, length_m = read_road_network(tmp_path), read_lengths(tmp_path)
    # 100 m of a slow road take 50 s, 300 m of a fast one 30 s.
    times = [f"2015-11-05T08:0{m}:{s:02}Z" for m, s in ((0, 0), (0, 50), (1, 20))]
    train = read_trips(write_trips(tmp_path / "train.csv", trip("0,3,5", ",".join(times))), network)
    seconds = road_seconds(network, length_m, train)
    assert seconds.tolist() == [50, 50, 50, 30, 50, 50, 50]

    found = dict(baseline_trips(network, length_m, train, QUERIES))
    paths = {
        name: [roads.tolist() for roads in np.split(made.trips.road_id, made.trips.offset[1:-1])]
        for name, made in found.items()
    }
    # Nothing leads to road 6: the trip ends where it starts.
    assert paths[SHORTEST] == [[0, 1, 2, 5], [0], [5, 0, 1, 2], [4]]
    assert paths[FASTEST] == [[0, 3, 5], [0], [5, 0, 1, 2], [4]]
    assert paths[GREEDY][0] == [0, 4]
    fastest = found[FASTEST]
    assert fastest.trips.time_s.tolist() == [1000, 1050, 1080, 2000, 3000, 3050, 3100, 3150, 4000]
    assert fastest.destination.tolist() == [5, 6, 2, 4] and fastest.start_s.tolist() == [1000, 2000, 3000, 4000]
    assert (found[SHORTEST].trips.label >= 0).all()


def test_paths_are_the_cheapest_ones_wherever_the_walk_leads(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    size = 100
    lines = [f"[[116.{310 + i % 8}, 39.{910 + i // 8}], [116.{310 + i % 8}5, 39.{910 + i // 8}]]" for i in range(size)]
    relations = sorted({(int(a), int(b)) for a, b in rng.integers(0, size, (220, 2)) if a != b})
    write_roads(tmp_path, lines, relations, ["slow"] * size, [str(n) for n in rng.integers(10, 500, size)])
    network, length_m = read_road_network(tmp_path), read_lengths(tmp_path)
    first = relations[0]
    times = "2015-11-05T08:00:00Z,2015-11-05T08:00:50Z"
    train = read_trips(write_trips(tmp_path / "train.csv", trip(f"{first[0]},{first[1]}", times)), network)
    # More origins than are searched from at once, in an order of their own, and several queries of each.
    queries = [Query(int(a), int(b), 0, i) for i, (a, b) in enumerate(rng.integers(0, size, (300, 2)))]

    made = dict(baseline_trips(network, length_m, train, queries))[SHORTEST].trips
    # Floyd and Warshall.
    cost = np.full((size, size), np.inf)
    np.fill_diagonal(cost, 0)
    for a, b in relations:
        cost[a, b] = length_m[a]
    for middle in range(size):
        cost = np.minimum(cost, cost[:, middle, None] + cost[None, middle])
    for query, roads in zip(queries, np.split(made.road_id, made.offset[1:-1]), strict=True):
        if np.isfinite(cost[query.origin, query.destination]):
            assert roads[-1] == query.destination
            assert length_m[roads[:-1]].sum() == cost[query.origin, query.destination]
        else:
            assert roads.tolist() == [query.origin]
