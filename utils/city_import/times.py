"""From a match to a trip of the data format: which roads, and when each was entered."""

import numpy as np
from numpy.typing import NDArray

from utils.city_import.matching import Match

Ints = NDArray[np.int64]


def entries(match: Match, grazed_m: float, last_length_m: float) -> tuple[Ints, Ints]:
    """The roads of a match [L], and the whole seconds at which they are entered, strictly ascending.

    Between two fixes the speed is even along the way. The first road is entered at the first fix: the way to it is not
    known.

    Args:
        match: of one trip.
        grazed_m: a first or last road on which the trip drives less than this, and less than half of it, is left out.
            A first fix at a junction is as near to all roads that end there as to the one that begins there.
        last_length_m: of the last road.
    """
    # Where the car stands, several fixes are at one place: it leaves the place at the last of them.
    leaves = np.append(np.diff(match.fix_m) > 0, True)
    seconds = np.interp(match.start_m, match.fix_m[leaves], match.fix_time_s[leaves])
    seconds[0] = match.fix_time_s[0]
    first, last = 0, len(match.roads)
    if last > 1 and match.start_m[1] - match.fix_m[0] < min(grazed_m, match.start_m[1] / 2):
        first = 1
    if last - first > 1 and match.fix_m[-1] - match.start_m[-1] < min(grazed_m, last_length_m / 2):
        last -= 1
    return np.array(match.roads[first:last]), strictly_ascending(np.floor(seconds).astype(np.int64)[first:last])


def strictly_ascending(seconds: Ints) -> Ints:
    """Times moved later where needed, so that each is at least a second after the one before."""
    place = np.arange(len(seconds))
    return np.maximum.accumulate(seconds - place) + place
