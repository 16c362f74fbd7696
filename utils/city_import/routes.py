"""Shortest ways between roads, remembered: what the matcher asks most of all."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GROUP = 256  # roads near each other whose ways are found together
REMEMBERED = 25_000_000  # ways in memory, of 16 bytes


@dataclass(frozen=True)
class Ways:
    """Ways from some roads of a group to all roads within a limit. Sorted by `key`, origin * N + destination."""

    origins: Ints  # ascending
    key: Ints  # [W]
    distance_m: NDArray[np.float32]  # [W], from the start of the origin to the start of the destination
    previous: NDArray[np.int32]  # [W], the road before the destination on the way; -1 at the origin itself

    def find(self, key: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Places of keys, and whether they are there."""
        place = np.searchsorted(self.key, key)
        place[place == len(self.key)] = 0
        return place, self.key[place] == key if len(self.key) else np.zeros(len(key), dtype=bool)


class Routes:
    """Shortest ways by distance over a network of N roads.

    Roads near each other form groups: the ways of a group are searched for in its surroundings only, so that the time
    for a way depends on its length and not on the size of the city.
    """

    def __init__(self, pairs: Ints, length_m: Floats, start_m: Floats, extra_m: Floats):
        """A network.

        Args:
            pairs: [R, 2], which road can follow which.
            length_m: [N].
            start_m: [N, 2], where roads start, in metres on a plane.
            extra_m: [R], what a turn counts beside the lengths of the roads.
        """
        self.num_roads = len(length_m)
        weights = np.maximum(length_m[pairs[:, 0]] + extra_m, 1e-3)  # without weight, an edge would be none
        self._graph = csr_array((weights, (pairs[:, 0], pairs[:, 1])), shape=(self.num_roads,) * 2)
        self._start_m = start_m
        self._group = np.empty(self.num_roads, dtype=np.int64)
        self._group[np.argsort(_z_order(start_m), kind="stable")] = np.arange(self.num_roads) // GROUP
        self._known: OrderedDict[tuple[int, float], Ways] = OrderedDict()
        self._size = 0

    def distances(self, origin: Ints, destination: Ints, limit_m: float) -> NDArray[np.float32]:
        """Metres from the start of each origin to the start of its destination; infinite beyond the limit."""
        found = np.full(len(origin), np.inf, dtype=np.float32)
        for rows, ways in self._by_group(origin, limit_m):
            place, there = ways.find(origin[rows] * self.num_roads + destination[rows])
            found[rows[there]] = ways.distance_m[place[there]]
        return found

    def paths(self, origin: Ints, destination: Ints, limit_m: float) -> list[list[int]]:
        """The roads from each origin to its destination, both included; there must be a way within the limit."""
        steps = [destination.copy()]
        now, active = destination.copy(), np.flatnonzero(origin != destination)
        while len(active):
            for rows, ways in self._by_group(origin[active], limit_m):
                row = active[rows]
                place, _ = ways.find(origin[row] * self.num_roads + now[row])
                now[row] = ways.previous[place]
            step = np.full(len(origin), -1)
            step[active] = now[active]
            steps.append(step)
            active = active[now[active] != origin[active]]
        return [[road for road in path if road >= 0] for path in np.stack(steps[::-1], axis=1).tolist()]

    def _by_group(self, origin: Ints, limit_m: float) -> list[tuple[Ints, Ways]]:
        """Rows of each group of origins, and the ways of the group."""
        group = self._group[origin]
        order = np.argsort(group, kind="stable")
        cuts = np.flatnonzero(np.diff(group[order])) + 1
        return [
            (rows, self._ways(int(group[rows[0]]), np.unique(origin[rows]), limit_m))
            for rows in np.split(order, cuts)
            if len(rows)
        ]

    def _ways(self, group: int, origins: Ints, limit_m: float) -> Ways:
        """The ways from at least these roads of a group."""
        known = self._known.pop((group, limit_m), None)
        missing = origins if known is None else np.setdiff1d(origins, known.origins, assume_unique=True)
        if len(missing):
            found = self._search(missing, limit_m)
            self._size += len(found.key)
            known = found if known is None else _both(known, found)
        self._known[group, limit_m] = known
        while self._size > REMEMBERED and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._size -= len(oldest.key)
        return known

    def _search(self, origins: Ints, limit_m: float) -> Ways:
        low, high = self._start_m[origins].min(axis=0) - limit_m, self._start_m[origins].max(axis=0) + limit_m
        # A road on a way starts no farther from the origin than the way is long; 1 % for the plane's errors.
        margin = 0.01 * limit_m
        near = np.flatnonzero(((self._start_m >= low - margin) & (self._start_m <= high + margin)).all(axis=1))
        graph = self._graph[near][:, near]
        distance, previous = dijkstra(
            graph, indices=np.searchsorted(near, origins), limit=limit_m, return_predecessors=True
        )
        row, column = np.nonzero(np.isfinite(distance))
        before = previous[row, column]
        return Ways(
            origins=origins,
            key=origins[row] * self.num_roads + near[column],
            distance_m=distance[row, column].astype(np.float32),
            previous=np.where(before < 0, -1, near[np.maximum(before, 0)]).astype(np.int32),
        )


def _both(one: Ways, other: Ways) -> Ways:
    key = np.concatenate([one.key, other.key])
    order = np.argsort(key, kind="stable")
    return Ways(
        origins=np.union1d(one.origins, other.origins),
        key=key[order],
        distance_m=np.concatenate([one.distance_m, other.distance_m])[order],
        previous=np.concatenate([one.previous, other.previous])[order],
    )


def _z_order(xy_m: Floats) -> Ints:
    """Places on a curve through the plane on which neighbours are mostly neighbours: bits of x and y in turn."""
    span = np.maximum(np.ptp(xy_m, axis=0).max(), 1.0)
    cell = ((xy_m - xy_m.min(axis=0)) / span * 0xFFFF).astype(np.int64)
    code = np.zeros(len(xy_m), dtype=np.int64)
    for bit in range(16):
        code |= ((cell[:, 0] >> bit) & 1) << (2 * bit)
        code |= ((cell[:, 1] >> bit) & 1) << (2 * bit + 1)
    return code
