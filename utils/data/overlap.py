"""Whether trips that a model is judged by are among those that it was trained on."""

import itertools
from collections.abc import Iterator

from utils.data.trips import Trips


def count_shared(trips: Trips, known: Trips) -> int:
    """How many of `trips` are among `known`: the same roads at the same times."""
    wanted = set(_keys(trips))
    found = {key for key in _keys(known) if key in wanted}
    return sum(key in found for key in _keys(trips))


def _keys(trips: Trips) -> Iterator[tuple[bytes, bytes]]:
    for first, last in itertools.pairwise(trips.offset):
        yield trips.road_id[first:last].tobytes(), trips.time_s[first:last].tobytes()
