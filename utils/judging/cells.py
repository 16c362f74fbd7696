"""Cells of the two grids by which trips with about the same ends are found, and the pairs of such trips."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.judging.sphere import geodesic_m

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CELL_M = 200.0  # published
FORK_CELL_DEG = 0.001
# The published boxes: least and greatest longitude, least and greatest latitude.
PUBLISHED_BOXES = {
    "BJ_Taxi": (116.25, 116.25 + 0.26, 39.79, 39.79 + 0.21),
    "Porto_Taxi": (-8.6890, -8.6890 + 0.1313, 41.1406, 41.1406 + 0.0449),
    "SF_Taxi": (-122.5123, -122.3617, 37.7083, 37.8309),
}
OWN_BOX = "own"


@dataclass(frozen=True)
class PublishedGrid:
    """Cells of 200 m from the south-western corner of a box; distances on the ellipsoid."""

    name: str  # of the published box, or `OWN_BOX`
    box: tuple[float, float, float, float]  # longitude from, to; latitude from, to

    @property
    def shape(self) -> tuple[int, int]:
        """Cells from west to east, and from south to north."""
        west, east, south, north = self.box
        width = geodesic_m(np.array(west), np.array(south), np.array(east), np.array(south))
        height = geodesic_m(np.array(west), np.array(south), np.array(west), np.array(north))
        return int(np.ceil(width / CELL_M)) + 1, int(np.ceil(height / CELL_M)) + 1

    def cells(self, points: Floats) -> Ints:
        """Columns and rows [n, 2] of points [n, 2], (lon, lat) in degrees.

        As published, a distance has no sign: points west or south of the box share cells with points inside.
        """
        lon, lat = points.T
        x = geodesic_m(np.full_like(lon, self.box[0]), lat, lon, lat)
        y = geodesic_m(lon, np.full_like(lat, self.box[2]), lon, lat)
        return np.stack([x // CELL_M, y // CELL_M], axis=1).astype(np.int64)


def published_grid(ends: Floats, bounds: Floats) -> PublishedGrid:
    """The published box whose grid has a cell for every end of a trip; else a box of the city's own.

    Args:
        ends: [n, 2], (lon, lat) of trips' first and last roads, in degrees.
        bounds: [2, 2], least and greatest (lon, lat) of the city.
    """
    for name, box in PUBLISHED_BOXES.items():
        grid = PublishedGrid(name, box)
        # Far points are not asked about: the ellipsoid's formula is for those of a city.
        is_near = bool((np.abs(ends - (box[0], box[2])) < 5).all())
        if is_near and (grid.cells(ends) < grid.shape).all():
            return grid
    (west, south), (east, north) = bounds.tolist()
    return PublishedGrid(OWN_BOX, (west, east, south, north))


def fork_cells(points: Floats) -> Ints:
    """Columns and rows [n, 2] of cells of 0.001 degrees, from the least longitude and latitude of all points."""
    return np.floor((points - points.min(axis=0)) / FORK_CELL_DEG).astype(np.int64)


def cell_ids(cells: Ints) -> Ints:
    """One number for each cell [n] of columns and rows [n, 2]."""
    return cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1]


def match_in_turn(key_a: Ints, key_b: Ints) -> Ints:
    """Pairs [P, 2] of indices with equal keys ([n, 2] and [m, 2]): of each key the i-th with the i-th."""
    waiting = defaultdict(list)
    for j, key in enumerate(map(tuple, key_b.tolist())):
        waiting[key].append(j)
    seen: dict[tuple[int, ...], int] = defaultdict(int)
    pairs = []
    for i, key in enumerate(map(tuple, key_a.tolist())):
        if seen[key] < len(waiting.get(key, ())):
            pairs.append((i, waiting[key][seen[key]]))
            seen[key] += 1
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
