"""A generated trip beside the real trip of its query, where trips take roads twice."""

import numpy as np

from utils.data.trips import Trips
from utils.judging.generated import GeneratedTrips
from utils.judging.same_query import query_metrics

CENTER = np.array([[116.3 + 0.001 * i, 39.9] for i in range(4)])
LENGTH_M = np.array([100.0, 200.0, 300.0, 400.0])


def trips_of(*paths: list[int]) -> Trips:
    offset = np.cumsum([0, *map(len, paths)])
    road = np.concatenate(paths).astype(np.int32)
    return Trips(offset, road, np.arange(len(road)) * 10, np.zeros(len(road), dtype=np.int32))


def test_a_road_counts_as_often_as_both_trips_take_it() -> None:
    real = trips_of([0, 1, 2, 1, 3], [0, 1, 3])
    made = trips_of([0, 1, 2, 1, 3], [0, 1, 2, 1, 2, 3])
    unknown = np.full(2, -1)
    found = query_metrics(GeneratedTrips("made", made, *[unknown] * 4), real, np.arange(2), CENTER, LENGTH_M)
    # The real path has a loop: the same path is a perfect one.
    assert found.is_equal[0] and found.precision[0] == found.recall[0] == found.f1[0] == 1
    # A loop that the real path has not costs precision: 3 of 6 roads.
    assert (found.precision[1], found.recall[1], found.f1[1]) == (3 / 6, 1, 2 * 3 / 9)
    # LibCity's formula has distinct roads above, and all roads below the line.
    assert found.common.tolist() == [4, 3] and found.made_roads.tolist() == [5, 6]
    assert found.overlap.tolist() == [1, 0.7]
