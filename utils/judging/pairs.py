"""How far the trips of a pair are apart: Hausdorff distance, DTW, EDR and edit distance, exact, many pairs at once.

Trips are sequences of road centres. Pairs of similar length are padded to a block [n, m, B] with the pairs along the
last axis, so that one NumPy call advances an anti-diagonal of all B tables of a dynamic programme:

             j ->            the cells with i + j = d depend on those with i + j = d - 1 and d - 2 only
        i  0 1 2 3
        |  1 2 3 4
        v  2 3 4 5

Padding never flows back: a cell depends on cells before it, and a pair's result is read where its own trips end.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.data.geometry import unit_vectors
from utils.data.trips import Trips
from utils.judging.sphere import EQUATOR_RADIUS_M

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EDR_THRESHOLD_M = 100.0
MAX_CELLS = 400_000  # of a block, n * m * B: its arrays stay in the processor's cache


@dataclass(frozen=True)
class PairDistances:
    """P pairs. Angles are distances on the unit sphere: times the earth's radius, they are kilometres."""

    hausdorff: Floats  # [P], radians
    dtw: Floats  # [P], radians, the sum over the best alignment
    edr_edits: Ints  # [P], edits where points match within `EDR_THRESHOLD_M`
    edr_published_edits: Ints  # [P], with longitude and latitude swapped, as published
    road_edits: Ints  # [P], Levenshtein distance of the sequences of roads
    first_length: Ints  # [P], points of the first trip
    second_length: Ints  # [P]

    @property
    def longer(self) -> Ints:
        """Points of the longer trip of each pair, [P]."""
        return np.maximum(self.first_length, self.second_length)

    @property
    def mean_length(self) -> Floats:
        """Mean number of points of each pair, [P]."""
        return (self.first_length + self.second_length) / 2

    @property
    def edr(self) -> Floats:
        """Edit distance on real sequences (Chen et al. 2005), edits / points of the longer trip, [P]."""
        return self.edr_edits / self.longer

    @property
    def edr_published(self) -> Floats:
        """EDR as the published notebook computes it: its distances take the longitude for the latitude, [P]."""
        return self.edr_published_edits / self.longer


def pair_distances(center: Floats, first: Trips, second: Trips, pairs: Ints) -> PairDistances:
    """Compare trips pair by pair.

    Args:
        center: [N, 2], (lon, lat) of the roads in degrees.
        first: trips.
        second: others.
        pairs: [P, 2], of each pair the index in `first` and in `second`.
    """
    length_a, length_b = (np.diff(trips.offset)[pairs[:, i]] for i, trips in enumerate((first, second)))
    # The squared chord of two unit vectors grows with their distance: no trigonometry for each cell.
    points = unit_vectors(center[:, 0], center[:, 1]), unit_vectors(center[:, 1], center[:, 0])
    hausdorff, dtw = np.zeros(len(pairs)), np.zeros(len(pairs))
    edits = np.zeros((3, len(pairs)), dtype=np.int64)
    for chosen in _blocks(length_a, length_b):
        sizes = length_a[chosen], length_b[chosen]
        road_a = _padded(first, pairs[chosen, 0], sizes[0].max())
        road_b = _padded(second, pairs[chosen, 1], max(2, sizes[1].max()))
        chord2 = _squared_chords(points[0], road_a, road_b)
        hausdorff[chosen] = _angle(_hausdorff(chord2))
        dtw[chosen] = _time_warp(_angle(chord2), *sizes)
        far2 = (2 * np.sin(EDR_THRESHOLD_M / EQUATOR_RADIUS_M / 2)) ** 2
        edits[0, chosen] = _edits(chord2 >= far2, *sizes)
        edits[1, chosen] = _edits(_squared_chords(points[1], road_a, road_b) >= far2, *sizes)
        edits[2, chosen] = _edits(road_a[:, None] != road_b[None], *sizes)
    return PairDistances(hausdorff, dtw, *edits, length_a, length_b)


def _blocks(length_a: Ints, length_b: Ints) -> Iterator[Ints]:
    """Indices of pairs of similar lengths, whose padded block has `MAX_CELLS` at most (or is one pair)."""
    order = np.lexsort((length_a, np.maximum(length_a, length_b)))
    start, rows, columns = 0, 0, 0
    for end, pair in enumerate(order):
        rows, columns = max(rows, length_a[pair]), max(columns, length_b[pair])
        if end > start and rows * columns * (end + 1 - start) > MAX_CELLS:
            yield order[start:end]
            start, rows, columns = end, length_a[pair], length_b[pair]
    if len(order):
        yield order[start:]


def _padded(trips: Trips, chosen: Ints, length: int) -> Ints:
    """Roads of the chosen trips as columns, [length, B]; a trip's last road stands for what it does not have."""
    first, last = trips.offset[chosen], trips.offset[chosen + 1] - 1
    return trips.road_id[np.minimum(first + np.arange(length)[:, None], last)].astype(np.int64)


def _squared_chords(points: Floats, road_a: Ints, road_b: Ints) -> Floats:
    """|u - v|^2 of all points of the first trips [n, B] and of the second ones [m, B], as [n, m, B]."""
    total = np.zeros((len(road_a), *road_b.shape))
    for axis in range(3):
        difference = points[road_a, axis][:, None] - points[road_b, axis][None]
        total += np.multiply(difference, difference, out=difference)
    return total


def _angle(chord2: Floats) -> Floats:
    """Radians between unit vectors with a squared chord."""
    return 2 * np.arcsin(np.minimum(np.sqrt(chord2) / 2, 1.0))


def _hausdorff(chord2: Floats) -> Floats:
    """The greatest distance of a point of either trip to the nearest point of the other, as a squared chord [B].

    Padding repeats the last point of a trip, so it changes neither a minimum nor a maximum.
    """
    return np.maximum(chord2.min(axis=1).max(axis=0), chord2.min(axis=0).max(axis=0))


def _diagonal(cells: NDArray, d: int, low: int, high: int) -> NDArray:
    """The cells (i, d - i), low <= i <= high, of [n, m, B], as [high - low + 1, B]; without copying."""
    rows, columns, width = cells.shape
    step = columns - 1  # in the flat table, from (i, j) to (i + 1, j - 1)
    first = low * columns + d - low
    return cells.reshape(rows * columns, width)[first : first + (high - low) * step + 1 : step]


def _time_warp(cost: Floats, length_a: Ints, length_b: Ints) -> Floats:
    """Dynamic time warping, [B]: D(i, j) = cost(i, j) + min(D(i - 1, j), D(i, j - 1), D(i - 1, j - 1)).

    `cost` is [n, m, B], m >= 2. The tables of diagonals are shifted by one: place i + 1 is row i, place 0 infinite.
    """
    rows, columns, width = cost.shape
    before_last, last, current = (np.full((rows + 1, width), np.inf) for _ in range(3))
    result = np.zeros(width)
    ends = length_a + length_b - 2
    for d in range(rows + columns - 1):
        low, high = max(0, d - columns + 1), min(d, rows - 1)
        target = current[low + 1 : high + 2]
        np.minimum(last[low + 1 : high + 2], last[low : high + 1], out=target)
        np.minimum(target, before_last[low : high + 1], out=target)
        if d == 0:
            target[:] = 0.0
        target += _diagonal(cost, d, low, high)
        done = np.flatnonzero(ends == d)
        result[done] = current[length_a[done], done]
        before_last, last, current = last, current, before_last
    return result


def _edits(differs: NDArray[np.bool_], length_a: Ints, length_b: Ints) -> Ints:
    """Insertions, deletions and replacements from one sequence to the other, [B].

    E(i, j) = min(E(i - 1, j) + 1, E(i, j - 1) + 1, E(i - 1, j - 1) + differs(i, j)), E(i, 0) = i, E(0, j) = j;
    `differs` is [n, m, B], m >= 2.
    """
    rows, columns, width = differs.shape
    before_last, last, current = (np.zeros((rows + 1, width), dtype=np.int32) for _ in range(3))
    result = np.zeros(width, dtype=np.int64)
    ends = length_a + length_b
    for d in range(rows + columns + 1):
        low, high = max(1, d - columns), min(rows, d - 1)
        if low <= high:
            target = current[low : high + 1]
            np.minimum(last[low : high + 1], last[low - 1 : high], out=target)
            target += 1
            replaced = before_last[low - 1 : high] + _diagonal(differs, d - 2, low - 1, high - 1)
            np.minimum(target, replaced, out=target)
        if d <= columns:
            current[0] = d
        if d <= rows:
            current[d] = d
        done = np.flatnonzero(ends == d)
        result[done] = current[length_a[done], done]
        before_last, last, current = last, current, before_last
    return result
