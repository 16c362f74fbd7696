"""Trips without a model: the shortest and the fastest path, and the walk towards the destination."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from utils.data.geometry import unit_vectors
from utils.data.road_network import RoadNetwork
from utils.data.trips import Trips, candidate_index, step_seconds
from utils.generation.paths import Query
from utils.judging.generated import GeneratedTrips
from utils.runtime.progress import progress

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHORTEST, FASTEST, GREEDY = "shortest path", "fastest path", "greedy"
MAX_ORIGINS = 64  # whose distances are computed at once


def road_seconds(network: RoadNetwork, length_m: Floats, train: Trips) -> Floats:
    """Seconds to drive along each road at the mean speed of its highway class in train.csv, [N]."""
    is_step = np.ones(len(train.road_id), dtype=bool)
    is_step[train.offset[1:] - 1] = False
    road = train.road_id[is_step]
    number, road_class = len(network.highway_classes), network.road_attr_type
    metres = np.bincount(road_class[road], length_m[road], number)
    seconds = np.bincount(road_class[road], step_seconds(train), number)
    # A class that no trip takes, or none with a length, has the mean of all.
    mean = max(metres.sum(), 1.0) / max(seconds.sum(), 1.0)
    speed = np.where((metres > 0) & (seconds > 0), metres / np.maximum(seconds, 1.0), mean)
    return length_m / speed[road_class]


def baseline_trips(
    network: RoadNetwork, length_m: Floats, train: Trips, queries: Sequence[Query]
) -> Iterator[tuple[str, GeneratedTrips]]:
    """Name and trips of each baseline.

    Args:
        network: the roads.
        length_m: [N], of the roads.
        train: the trips that speeds are taken from.
        queries: from where to where.
    """
    seconds = road_seconds(network, length_m, train)
    points = unit_vectors(network.center[:, 0], network.center[:, 1])
    walks = [_walk(network, points, query) for query in queries]
    for name, cost in ((SHORTEST, length_m), (FASTEST, seconds)):
        yield name, _trips(name, network, queries, _cheapest_paths(name, network, cost, queries, walks), seconds)
    yield GREEDY, _trips(GREEDY, network, queries, walks, seconds)


def _cheapest_paths(
    name: str, network: RoadNetwork, cost: Floats, queries: Sequence[Query], walks: Sequence[list[int]]
) -> list[list[int]]:
    """The path of least cost for each query (the origin alone if there is none); `cost` [N] is of leaving a road.

    No path of least cost is dearer than the walk to the same place, so the search ends there: a trip across a part of
    a city does not cost a search through all of it.
    """
    size = network.num_roads
    # A cost of 0 would be no edge to SciPy.
    cost = np.maximum(cost, 1e-6)
    pairs = np.unique(np.repeat(np.arange(size), np.diff(network.reach_ptr)) * size + network.reach_road)
    graph = csr_array((cost[pairs // size], (pairs // size, pairs % size)), shape=(size, size))
    origins, place = np.unique([query.origin for query in queries], return_inverse=True)
    limit = np.zeros(len(origins))
    np.maximum.at(limit, place, [_limit(cost, query, walk) for query, walk in zip(queries, walks, strict=True)])
    by_limit = np.argsort(limit, kind="stable")
    paths: dict[int, list[int]] = {}
    with progress(None, name, len(queries), "queries") as bar:
        for start in range(0, len(origins), MAX_ORIGINS):
            block = by_limit[start : start + MAX_ORIGINS]
            _, before = dijkstra(graph, indices=origins[block], return_predecessors=True, limit=limit[block[-1]])
            row_of = {origin: row for row, origin in enumerate(block.tolist())}
            for i in np.flatnonzero(np.isin(place, block)).tolist():
                paths[i] = _follow(before[row_of[int(place[i])]], queries[i])
                bar.update()
    return [paths[i] for i in range(len(queries))]


def _limit(cost: Floats, query: Query, walk: list[int]) -> float:
    """What the cheapest path costs at most; infinite where the walk does not reach the destination."""
    if walk[-1] != query.destination:
        return np.inf
    return float(cost[walk[:-1]].sum()) * (1 + 1e-9)  # sums in another order differ in their last bits


def _follow(before: Ints, query: Query) -> list[int]:
    """The path that ends at the destination, backwards along the roads before each road [N]."""
    path = [query.destination]
    while path[-1] != query.origin:
        road = int(before[path[-1]])
        if road < 0:
            return [query.origin]
        path.append(road)
    return path[::-1]


def _walk(network: RoadNetwork, points: Floats, query: Query) -> list[int]:
    """The candidate whose centre (one of `points` [N, 3]) is nearest to the destination's at each step; no road twice.

    It ends before the destination where all candidates have been taken.
    """
    path, taken = [query.origin], {query.origin}
    goal = points[query.destination]
    while path[-1] != query.destination:
        first, end = network.reach_ptr[path[-1]], network.reach_ptr[path[-1] + 1]
        candidates = [road for road in network.reach_road[first:end].tolist() if road not in taken]
        if not candidates:
            break
        distance = ((points[candidates] - goal) ** 2).sum(axis=1)
        path.append(candidates[int(distance.argmin())])
        taken.add(path[-1])
    return path


def _trips(
    name: str, network: RoadNetwork, queries: Sequence[Query], paths: list[list[int]], seconds: Floats
) -> GeneratedTrips:
    """Paths with the times at which their roads are entered, in whole seconds."""
    counts = np.array([len(path) for path in paths], dtype=np.int64)
    offset = np.concatenate([[0], np.cumsum(counts)])
    road = np.concatenate([np.array(path, dtype=np.int64) for path in paths])
    origin, destination, start_s, row = np.array(
        [(query.origin, query.destination, query.start_s, query.row) for query in queries], dtype=np.int64
    ).T
    elapsed = np.concatenate([[0.0], np.cumsum(seconds[road])])
    time_s = np.repeat(start_s, counts) + np.rint(elapsed[:-1] - np.repeat(elapsed[offset[:-1]], counts))
    label = np.zeros(len(road), dtype=np.int32)
    is_step = np.ones(len(road), dtype=bool)
    is_step[offset[1:] - 1] = False
    step = np.flatnonzero(is_step)
    label[step] = candidate_index(network, road[step], road[step + 1])
    none = np.zeros(len(queries), dtype=np.int64)
    trips = Trips(offset, road.astype(np.int32), time_s.astype(np.int64), label, none, row + 1)
    return GeneratedTrips(name, trips, origin, destination, start_s, row)
