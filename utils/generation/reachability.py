"""From which roads a destination can be reached, known beforehand."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from utils.data.road_network import RoadNetwork

MAX_KEPT = 256  # destinations' components; most cities have one that nearly all roads are in

Leads = Callable[[int | Sequence[int]], NDArray[np.bool_]]  # of roads: whether a destination can be reached from each


class Reachability:
    """Roads that reach each other form a component; what reaches what is found among components."""

    def __init__(self, network: RoadNetwork):
        size = network.num_roads
        ones = np.ones(len(network.reach_road), dtype=np.int8)
        roads = csr_array((ones, network.reach_road, network.reach_ptr), shape=(size, size))
        number, self._component = connected_components(roads, directed=True, connection="strong")
        origin = np.repeat(np.arange(size), np.diff(network.reach_ptr))
        pairs = np.unique(np.stack([self._component[network.reach_road], self._component[origin]]), axis=1)
        self._backwards = csr_array((np.ones(pairs.shape[1], dtype=np.int8), tuple(pairs)), shape=(number, number))
        self._reaching = functools.lru_cache(maxsize=MAX_KEPT)(self._find_reaching)

    def to(self, destination: int) -> Leads:
        """A function: whether the destination can be reached from roads (or is one of them)."""
        reaching = self._reaching(int(self._component[destination]))
        return lambda road: reaching[self._component[road]]

    def _find_reaching(self, component: int) -> NDArray[np.bool_]:
        reaching = np.zeros(self._backwards.shape[0], dtype=bool)
        reaching[breadth_first_order(self._backwards, component, return_predecessors=False)] = True
        return reaching
