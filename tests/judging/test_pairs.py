"""Hausdorff, DTW, EDR and edit distances of many pairs are those of a plain double loop over each pair."""

import math
import time

import numpy as np
import pytest

from utils.data.trips import Trips
from utils.judging import pairs as pairs_module
from utils.judging.pairs import pair_distances

CENTER = np.random.default_rng(1).uniform((116.30, 39.85), (116.33, 39.87), (60, 2))
Point = tuple[float, float]


def make_trips(lengths: list[int], seed: int) -> Trips:
    offset = np.concatenate([[0], np.cumsum(lengths)])
    road = np.random.default_rng(seed).integers(0, len(CENTER), offset[-1]).astype(np.int32)
    return Trips(offset, road, np.zeros(offset[-1], dtype=np.int64), np.zeros(offset[-1], dtype=np.int32))


def angle(a: Point, b: Point) -> float:
    """Haversine formula of (lon, lat), radians."""
    (lon1, lat1), (lon2, lat2) = (tuple(map(math.radians, point)) for point in (a, b))
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * math.asin(math.sqrt(h))


def hausdorff(a: list[Point], b: list[Point]) -> float:
    return max(max(min(angle(p, q) for q in b) for p in a), max(min(angle(p, q) for q in a) for p in b))


def time_warp(a: list[Point], b: list[Point]) -> float:
    table = [[math.inf] * (len(b) + 1) for _ in range(len(a) + 1)]
    table[0][0] = 0.0
    for i, p in enumerate(a, 1):
        for j, q in enumerate(b, 1):
            table[i][j] = angle(p, q) + min(table[i - 1][j], table[i][j - 1], table[i - 1][j - 1])
    return table[-1][-1]


def edits(a: list, b: list, same) -> int:
    table = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, p in enumerate(a, 1):
        for j, q in enumerate(b, 1):
            replaced = table[i - 1][j - 1] + (not same(p, q))
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
    return table[-1][-1]


def near(p: Point, q: Point) -> bool:
    return angle(p, q) * 6_378_137 < 100


@pytest.mark.parametrize("max_cells", [1, 300, 400_000])
def test_the_distances_are_those_of_a_double_loop_whatever_the_block(
    max_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "MAX_CELLS", max_cells)
    lengths = [1, 1, 2, 3, 5, 8, 13, 21, 1, 17, 4, 9]
    first, second = make_trips(lengths, 2), make_trips([1, 7, 1, 3, 2, 30, 11, 6, 25, 17, 5, 9], 3)
    pairs = np.array([(i, (5 * i + shift) % len(lengths)) for i in range(len(lengths)) for shift in (0, 1)])
    # A real trip of which a part is the same: matches occur, not only differences.
    second.road_id[second.offset[9] : second.offset[9] + 12] = first.road_id[first.offset[9] : first.offset[9] + 12]
    pairs = np.concatenate([pairs, [[9, 9]]])
    found = pair_distances(CENTER, first, second, pairs)
    for place, (i, j) in enumerate(pairs):
        roads = [
            trips.road_id[trips.offset[k] : trips.offset[k + 1]].tolist() for trips, k in ((first, i), (second, j))
        ]
        a, b = ([tuple(CENTER[road]) for road in trip] for trip in roads)
        assert found.hausdorff[place] == pytest.approx(hausdorff(a, b), rel=1e-9, abs=1e-15)
        assert found.dtw[place] == pytest.approx(time_warp(a, b), rel=1e-9, abs=1e-15)
        assert found.edr_edits[place] == edits(a, b, near)
        swapped = [[point[::-1] for point in trip] for trip in (a, b)]
        assert found.edr_published_edits[place] == edits(*swapped, near)
        assert found.road_edits[place] == edits(*roads, lambda p, q: p == q)
        assert found.edr[place] == found.edr_edits[place] / max(len(a), len(b))
    assert found.road_edits[-1] <= 5 and (found.edr_edits < found.road_edits).any()


def test_no_pair_is_no_distance() -> None:
    trips = make_trips([3], 0)
    assert len(pair_distances(CENTER, trips, trips, np.empty((0, 2), dtype=np.int64)).dtw) == 0


@pytest.mark.slow
def test_5000_pairs_of_50_roads_take_seconds() -> None:
    first, second = make_trips([50] * 5000, 4), make_trips([50] * 5000, 5)
    start = time.process_time()
    pair_distances(CENTER, first, second, np.stack([np.arange(5000)] * 2, axis=1))
    assert time.process_time() - start < 10
