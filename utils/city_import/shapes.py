"""Where the roads are, in metres on a plane, and which of them are near a point."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from utils.data.geometry import EARTH_RADIUS_M

SAMPLE_M = 40.0  # greatest distance between the points that stand for a road in the search for near ones

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """The roads near each of F points, the nearest first; -1 where there are fewer than K."""

    road: NDArray[np.int32]  # [F, K]
    along_m: NDArray[np.float32]  # [F, K], from the start of the road to the nearest point on it
    distance_m: NDArray[np.float32]  # [F, K], infinite where there is no road


@dataclass(frozen=True)
class RoadShapes:
    """The lines of N roads, packed: road i is xy_m[offset[i] : offset[i + 1]]."""

    xy_m: Floats  # [P, 2], east and north of the middle of the city, equirectangular
    along_m: Floats  # [P], distance from the start of the road
    offset: Ints  # [N + 1]
    length_m: Floats  # [N]
    origin: Floats  # [2], (lon, lat) of the middle of the city

    @staticmethod
    def from_lines(points: Floats, offset: Ints) -> "RoadShapes":
        """From polylines in degrees: points [P, 2] (lon, lat), and offsets [N + 1]."""
        origin = (points.min(axis=0) + points.max(axis=0)) / 2
        xy = _to_plane(points, origin)
        step = np.hypot(*np.diff(xy, axis=0, prepend=xy[:1]).T)
        step[offset[:-1]] = 0.0
        total = np.cumsum(step)
        along = total - np.repeat(total[offset[:-1]], np.diff(offset))
        return RoadShapes(xy, along, offset, along[offset[1:] - 1], origin)

    def to_plane(self, lon_lat: Floats) -> Floats:
        """Degrees [n, 2] to metres [n, 2] east and north of the middle of the city."""
        return _to_plane(lon_lat, self.origin)

    @cached_property
    def start_m(self) -> Floats:
        """[N, 2], where the roads start."""
        return self.xy_m[self.offset[:-1]]

    @cached_property
    def end_m(self) -> Floats:
        """[N, 2], where the roads end."""
        return self.xy_m[self.offset[1:] - 1]

    def are_ways_back(self, origin: Ints, destination: Ints) -> NDArray[np.bool_]:
        """Whether the second road of each pair [R] is the first one in the other direction."""
        same = (self.end_m[origin] == self.start_m[destination]) & (self.start_m[origin] == self.end_m[destination])
        return same.all(axis=1) & (np.abs(self.length_m[origin] - self.length_m[destination]) < 1e-3)

    def turns(self, origin: Ints, destination: Ints) -> Floats:
        """Angles in [0, pi] by which the direction changes from the end of one road to the start of the next, [R]."""
        last, first = self.offset[origin + 1] - 1, self.offset[destination]
        arrives = self.xy_m[last] - self.xy_m[last - 1]
        leaves = self.xy_m[first + 1] - self.xy_m[first]
        across = arrives[:, 0] * leaves[:, 1] - arrives[:, 1] * leaves[:, 0]
        return np.abs(np.arctan2(across, (arrives * leaves).sum(axis=1)))

    @cached_property
    def _segment(self) -> Ints:
        """First point of each straight segment."""
        return np.delete(np.arange(len(self.xy_m)), self.offset[1:] - 1)

    @cached_property
    def _road(self) -> Ints:
        """Road of each straight segment."""
        return np.repeat(np.arange(len(self.length_m)), np.diff(self.offset) - 1)

    @cached_property
    def _samples(self) -> tuple[KDTree, Ints]:
        """Points at most `SAMPLE_M` apart along all segments, and the segment of each."""
        start, end = self.xy_m[self._segment], self.xy_m[self._segment + 1]
        number = np.maximum(1, np.ceil(np.hypot(*(end - start).T) / SAMPLE_M)).astype(np.int64)
        segment = np.repeat(np.arange(len(number)), number)
        place = np.arange(len(segment)) - np.repeat(np.cumsum(number) - number, number)
        part = ((place + 0.5) / number[segment])[:, None]
        return KDTree(start[segment] + part * (end - start)[segment]), segment

    def candidates(self, xy_m: Floats, radius_m: float, most: int) -> Candidates:
        """The roads within `radius_m` of points [F, 2], at most `most` (K) for each."""
        tree, segment = self._samples
        near = KDTree(xy_m).sparse_distance_matrix(tree, radius_m + SAMPLE_M / 2, output_type="ndarray")
        key = np.unique(near["i"] * len(self._segment) + segment[near["j"]])
        fix, part = np.divmod(key, len(self._segment))
        along, distance = self._project(xy_m[fix], part)
        road = self._road[part]
        inside = distance <= radius_m
        fix, road, along, distance = fix[inside], road[inside], along[inside], distance[inside]
        order = np.lexsort((distance, road, fix))  # the nearest segment of each road
        fix, road, along, distance = fix[order], road[order], along[order], distance[order]
        first = np.ones(len(fix), dtype=bool)
        first[1:] = (fix[1:] != fix[:-1]) | (road[1:] != road[:-1])
        order = np.flatnonzero(first)
        order = order[np.lexsort((road[order], distance[order], fix[order]))]
        rank = np.arange(len(order)) - np.searchsorted(fix[order], fix[order])
        order, rank = order[rank < most], rank[rank < most]
        shape, place = (len(xy_m), most), (fix[order], rank)
        found = Candidates(
            np.full(shape, -1, dtype=np.int32), np.zeros(shape, np.float32), np.full(shape, np.inf, np.float32)
        )
        found.road[place], found.along_m[place], found.distance_m[place] = road[order], along[order], distance[order]
        return found

    def _project(self, xy_m: Floats, part: Ints) -> tuple[Floats, Floats]:
        """Distance along the road of the nearest point of segment `part`, and distance to it."""
        first = self._segment[part]
        start, direction = self.xy_m[first], self.xy_m[first + 1] - self.xy_m[first]
        square = np.maximum((direction**2).sum(axis=1), 1e-12)
        share = np.clip(((xy_m - start) * direction).sum(axis=1) / square, 0.0, 1.0)
        gap = xy_m - start - share[:, None] * direction
        return self.along_m[first] + share * np.sqrt(square), np.hypot(*gap.T)


def _to_plane(lon_lat: Floats, origin: Floats) -> Floats:
    scale = np.radians(1.0) * EARTH_RADIUS_M * np.array([np.cos(np.radians(origin[1])), 1.0])
    return (lon_lat - origin) * scale
