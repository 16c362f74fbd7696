"""What is measured of each trip: length, radius, durations, departure."""

import numpy as np
from numpy.typing import NDArray

from utils.data.trips import Trips, step_seconds
from utils.judging.sphere import great_circle_km

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def trip_lengths_km(trips: Trips, center: Floats) -> Floats:
    """Sum of the great-circle distances from each road's centre to the next one's, [n]."""
    lon, lat = center[trips.road_id].T
    # At the first road of a trip there is no step to it.
    step = np.concatenate([[0.0], great_circle_km(lon[:-1], lat[:-1], lon[1:], lat[1:])])
    step[trips.offset[:-1]] = 0.0
    return np.add.reduceat(step, trips.offset[:-1])


def trip_radii_km(trips: Trips, center: Floats) -> Floats:
    """Mean distance of a trip's road centres to their mean point, [n] (of one road: 0)."""
    lengths = np.diff(trips.offset)
    points = center[trips.road_id]
    middle = np.add.reduceat(points, trips.offset[:-1]) / lengths[:, None]
    lon, lat = np.repeat(middle, lengths, axis=0).T
    distance = great_circle_km(lon, lat, points[:, 0], points[:, 1])
    return np.add.reduceat(distance, trips.offset[:-1]) / lengths


def step_minutes(trips: Trips) -> Floats:
    """Minutes from each road to the next, of all trips, [S]; trip i has those from offset[i] - i on."""
    return step_seconds(trips) / 60


def trip_seconds(trips: Trips) -> Ints:
    """Seconds from the first road to the last, [n]."""
    return trips.time_s[trips.offset[1:] - 1] - trips.time_s[trips.offset[:-1]]


def departure_hours(trips: Trips) -> Ints:
    """Hour of the day of each start, 0 to 23, [n]."""
    return trips.time_s[trips.offset[:-1]] // 3600 % 24
