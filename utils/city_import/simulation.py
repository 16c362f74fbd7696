"""GPS fixes drawn from trips that are known, to see how many of their roads are found again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.city_import.shapes import RoadShapes
from utils.data.geometry import EARTH_RADIUS_M
from utils.data.trips import Trips

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GpsOptions:
    """How the receivers are."""

    noise_m: float = 15.0  # standard deviation in each direction
    interval_s: int = 15
    gap_share: float = 0.0  # of the fixes, that are missing one by one
    seed: int = 0


@dataclass(frozen=True)
class SimulatedFixes:
    """Fixes of many trips, in the order of the trips."""

    trip: Ints  # [F]
    time_s: Ints  # [F], seconds since 1970
    lon_lat: Floats  # [F, 2]


def draw_fixes(trips: Trips, points: Floats, offset: Ints, options: GpsOptions) -> SimulatedFixes:
    """Fixes along trips: speed is even along each road, and the last road is driven to its middle.

    Args:
        trips: roads, and when each is entered.
        points: [P, 2] (lon, lat), the lines of all roads, packed.
        offset: [N + 1] into the points.
        options: of the receivers.
    """
    rng = np.random.default_rng(options.seed)
    shapes = RoadShapes.from_lines(points, offset)
    numbers, times, places = [], [], []
    for number, (first, last) in enumerate(zip(trips.offset[:-1], trips.offset[1:], strict=True)):
        roads, entered = trips.road_id[first:last].astype(np.int64), trips.time_s[first:last]
        length = shapes.length_m[roads]
        length[-1] /= 2
        start = np.concatenate([[0.0], np.cumsum(length)])
        speed = start[-2] / max(entered[-1] - entered[0], 1)
        end = entered[-1] + max(1, round(length[-1] / max(speed, 1.0)))
        time = np.arange(entered[0], end + 1, options.interval_s)
        if time[-1] < end:
            time = np.append(time, end)
        keep = rng.random(len(time)) >= options.gap_share
        keep[[0, -1]] = True
        time = time[keep]
        numbers.append(np.full(len(time), number))
        times.append(time)
        places.append(_points_along(shapes, roads, start, np.interp(time, [*entered, end], start)))
    xy_m = np.concatenate(places)
    xy_m += rng.normal(0.0, options.noise_m, xy_m.shape)
    scale = np.radians(1.0) * EARTH_RADIUS_M * np.array([np.cos(np.radians(shapes.origin[1])), 1.0])
    return SimulatedFixes(np.concatenate(numbers), np.concatenate(times), xy_m / scale + shapes.origin)


def _points_along(shapes: RoadShapes, roads: Ints, start: Floats, at_m: Floats) -> Floats:
    """Points [n, 2] at distances `at_m` from the start of a trip."""
    place = np.searchsorted(start[1:-1], at_m, side="right")
    found = np.empty((len(at_m), 2))
    for i, (road, along) in enumerate(zip(roads[place].tolist(), at_m - start[place], strict=True)):
        line = slice(shapes.offset[road], shapes.offset[road + 1])
        for axis in (0, 1):
            found[i, axis] = np.interp(along, shapes.along_m[line], shapes.xy_m[line, axis])
    return found
