"""Simulated drivers of a synthetic city: where they go, which way they take, when they enter each road.

A driver takes the path that is fastest under the times that this driver believes in: class speeds, congestion of
the hour, turns, and a personal taste per class and per road. The clock then runs on the real times, with noise.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from tqdm import tqdm

from utils.data.synthetic.network import RESIDENTIAL, TRUNK, CityNetwork, ranges
from utils.errors import UserError

FIRST_DAY = np.datetime64("2015-11-01T00:00:00")  # a Sunday
DAYS = 14
MIN_ROADS, MAX_ROADS = 5, 120  # of a trip

# Per class of city_network.HIGHWAYS, motorway to unclassified.
# They are means over a road, waiting included, so minor streets are slow.
SPEED_KMH = np.array([95.0, 80.0, 66.0, 50.0, 28.0, 13.0, 8.0, 15.0])
NIGHT, DAY, MORNING_RUSH, EVENING_RUSH, WEEKEND = range(5)
CONGESTION = np.array(  # travel time relative to the free road, by time profile and class
    [
        [1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00, 1.00],
        [1.10, 1.15, 1.25, 1.20, 1.15, 1.05, 1.00, 1.05],
        [1.60, 1.65, 1.80, 1.60, 1.35, 1.10, 1.05, 1.10],
        [1.45, 1.60, 1.90, 1.65, 1.40, 1.15, 1.05, 1.10],
        [1.05, 1.10, 1.20, 1.15, 1.10, 1.05, 1.05, 1.05],
    ]
)
SURFACE_SIGMA = 0.30  # of the lognormal factor of a road, the same for all: lights, parked cars
TASTE_SIGMA_CLASS, TASTE_SIGMA_ROAD = 0.10, 0.20  # of the lognormal factors of one driver
NOISE_SIGMA_ROAD, NOISE_SIGMA_TRIP = 0.20, 0.08  # of the lognormal factors of the clock

TRIPS_PER_DRIVER = 200
PLACES_PER_DRIVER = 6  # home, work, ...: where most of a driver's trips start
PLACE_SHARES = np.array([0.34, 0.24, 0.14, 0.11, 0.09, 0.08])
ANYWHERE_SHARE = 0.15  # of starts, and of ends, that are no place of the driver or no hot spot
HOT_SPOT_PARETO = 1.1  # tail index of the attraction of hot spots
HALF_WINDOW_M = 5000.0  # a driver stays within this square round home
HOME_SCALE_M = 700.0  # of the distances from home to a driver's other places; their mean is three times this
TRIP_SCALE_M = 1500.0  # of the distances from start to end, likewise
NEAREST_END_M = 250.0
SLOWEST_M_PER_S = 3.0  # as the crow flies, after the first SPARE_S; bounds the search for a path
SPARE_S = 300.0


@dataclass(frozen=True)
class Trips:
    """M trips in order of departure; trip i is the slice ptr[i] to ptr[i + 1] of `road` and `entered_s`."""

    driver: np.ndarray  # int64 [M]
    number: np.ndarray  # int64 [M] counts the trips of one driver from 0
    ptr: np.ndarray  # int64 [M + 1]
    road: np.ndarray  # int32 [P]
    entered_s: np.ndarray  # int64 [P] whole seconds since FIRST_DAY, strictly increasing within a trip


@dataclass(frozen=True)
class Surroundings:
    """What all drivers share."""

    network: CityNetwork
    time_s: np.ndarray  # float32 [profiles, N] to drive along each road
    turn_s: np.ndarray  # float32 [R] delay between the two roads of a relation
    bearing: np.ndarray  # complex128 [N] unit vector from start to end, east + i north
    hot_spot: np.ndarray  # int64 [H] junction
    attraction: np.ndarray  # float64 [H]
    by_end: np.ndarray  # int64 [N] roads in order of their end junction
    in_ptr: np.ndarray  # int64 [J + 1] into by_end

    def position_m(self, junction: np.ndarray) -> np.ndarray:
        """[..., 2] metres east and north of the centre."""
        return np.stack([self.network.x_m[junction], self.network.y_m[junction]], axis=-1)


def drive_trips(network: CityNetwork, trips: int, seed: int) -> Trips:
    """Exactly `trips` trips on `network`, a function of the arguments alone."""
    city = _surroundings(network, np.random.Generator(np.random.PCG64([seed, 2])))
    drivers = min(max(trips // TRIPS_PER_DRIVER, min(10, trips)), 2000)
    quota = np.full(drivers, trips // drivers)
    quota[: trips % drivers] += 1

    driver, lengths, roads, times = [], [], [], []
    with tqdm(total=trips, desc="trips", unit="trip", disable=None) as progress:
        for number, wanted in enumerate(quota.tolist()):
            rng = np.random.Generator(np.random.PCG64([seed, 3, number]))
            for route, entered_s in _driver_trips(city, rng, wanted):
                driver.append(number)
                lengths.append(len(route))
                roads.append(route.astype(np.int32))
                times.append(entered_s)
            progress.update(wanted)
    return _by_departure(np.array(driver), np.array(lengths), np.concatenate(roads), np.concatenate(times))


def _by_departure(driver: np.ndarray, length: np.ndarray, road: np.ndarray, entered_s: np.ndarray) -> Trips:
    begin = np.cumsum(length) - length
    order = np.argsort(entered_s[begin], kind="stable")
    index = ranges(begin[order], length[order])
    of_driver = np.lexsort((np.arange(len(order)), driver[order]))
    first = np.searchsorted(driver[order][of_driver], driver[order][of_driver])
    number = np.empty(len(order), dtype=np.int64)
    number[of_driver] = np.arange(len(order)) - first
    ptr = np.concatenate([[0], np.cumsum(length[order])])
    return Trips(driver[order], number, ptr, road[index], entered_s[index])


# The city as drivers find it ----------------------------------------------------------------------------------


def _surroundings(network: CityNetwork, rng: np.random.Generator) -> Surroundings:
    x, y = network.x_m, network.y_m
    start, end = network.start, network.end
    bearing = (x[end] - x[start]) + 1j * (y[end] - y[start])
    bearing /= np.abs(bearing)

    radius_m = np.sqrt(np.mean(x**2 + y**2))
    centrality = np.exp(-(x[end] ** 2 + y[end] ** 2) / radius_m**2)
    surface = rng.lognormal(0.0, SURFACE_SIGMA, network.roads)
    free_s = network.length_m / (SPEED_KMH[network.highway] / 3.6) * surface
    excess = (CONGESTION - 1)[:, network.highway] * (0.6 + 0.8 * centrality)

    junctions = np.unique(start[network.highway > TRUNK])
    spots = min(len(junctions), int(np.clip(network.roads // 60, 6, 3000)))
    by_end = np.argsort(end, kind="stable")
    return Surroundings(
        network=network,
        time_s=(free_s * (1 + excess)).astype(np.float32),
        turn_s=_turn_delay_s(network, bearing, network.origin, network.destination).astype(np.float32),
        bearing=bearing,
        hot_spot=rng.choice(junctions, spots, replace=False),
        attraction=1 + rng.pareto(HOT_SPOT_PARETO, spots),
        by_end=by_end,
        in_ptr=np.searchsorted(end[by_end], np.arange(len(x) + 1)),
    )


def _turn_delay_s(network: CityNetwork, bearing: np.ndarray, origin: np.ndarray, destination: np.ndarray) -> np.ndarray:
    """Seconds lost from `origin` into `destination`: left turns (right-hand traffic) and entering a larger road."""
    turn_deg = np.degrees(np.angle(bearing[destination] / bearing[origin]))  # positive is left
    delay_s = np.select([np.abs(turn_deg) > 150, turn_deg > 40, turn_deg < -40], [25.0, 8.0, 4.0], default=1.5)
    enters_larger = (network.highway[origin] >= RESIDENTIAL) & (network.highway[destination] < RESIDENTIAL)
    return delay_s + 4.0 * enters_larger


# One driver ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DriverWorld:
    """The W roads within reach of one driver, and that driver's idea of them."""

    road: np.ndarray  # int64 [W] ascending; all road numbers below are positions in it
    graphs: list[csr_array]  # per time profile: believed seconds from the start of a road to that of the next
    place: np.ndarray  # int64 [PLACES_PER_DRIVER]
    spot: np.ndarray  # bool [H] hot spots within reach
    pace: float  # the clock of this driver relative to the others


def _driver_trips(city: Surroundings, rng: np.random.Generator, wanted: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`wanted` pairs (roads, second of entry into each) of one driver."""
    world = _driver_world(city, rng)
    trips: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(50):
        missing = wanted - len(trips)
        if missing == 0:
            return trips
        depart_s = _departures(rng, missing + missing // 4 + 2)
        profile = _time_profile(depart_s)
        origin, destination = _ends(city, world, rng, len(depart_s))
        routes = _fastest_paths(city, world, profile, origin, destination)
        for trip in sorted(routes)[:missing]:
            entered_s = _entries(city, rng, routes[trip], int(depart_s[trip]), int(profile[trip]), world.pace)
            trips.append((routes[trip], entered_s))
    raise UserError(
        f"found too few trips of {MIN_ROADS} to {MAX_ROADS} roads in a city of {city.network.roads} roads: "
        "use more roads or another seed"
    )


def _driver_world(city: Surroundings, rng: np.random.Generator) -> DriverWorld:
    network = city.network
    home = rng.choice(city.hot_spot, p=city.attraction / city.attraction.sum())
    near = np.abs(network.x_m - network.x_m[home]) < HALF_WINDOW_M
    near &= np.abs(network.y_m - network.y_m[home]) < HALF_WINDOW_M
    inside = near[network.start] & near[network.end]
    road = np.flatnonzero(inside)

    taste = rng.lognormal(0.0, TASTE_SIGMA_CLASS, len(SPEED_KMH))[network.highway[road]]
    taste *= rng.lognormal(0.0, TASTE_SIGMA_ROAD, len(road))
    relation = np.flatnonzero(inside[network.origin] & inside[network.destination])
    row = np.searchsorted(road, network.origin[relation])
    column = np.searchsorted(road, network.destination[relation])
    row_ptr = np.searchsorted(row, np.arange(len(road) + 1))
    shape = (len(road), len(road))
    believed_s = [(time_s[road] * taste)[row] + city.turn_s[relation] for time_s in city.time_s]
    graphs = [csr_array((seconds, column, row_ptr), shape=shape) for seconds in believed_s]

    spot = near[city.hot_spot]
    from_home = city.position_m(np.full(PLACES_PER_DRIVER - 1, home))
    hot_spot = city.hot_spot[spot]
    others = _gravity(rng, from_home, city.position_m(hot_spot), city.attraction[spot], HOME_SCALE_M)
    place = _pick(rng, network.out_ptr, np.concatenate([[home], hot_spot[others]]))
    return DriverWorld(road, graphs, _nearest_position(road, place), spot, rng.lognormal(0.0, NOISE_SIGMA_TRIP))


def _ends(
    city: Surroundings, world: DriverWorld, rng: np.random.Generator, trips: int
) -> tuple[np.ndarray, np.ndarray]:
    """Origin and destination roads: from the driver's places to hot spots, a minority from or to anywhere."""
    network = city.network
    quiet = np.flatnonzero(network.highway[world.road] > TRUNK)
    origin = world.place[rng.choice(PLACES_PER_DRIVER, trips, p=PLACE_SHARES)]
    origin = np.where(rng.random(trips) < ANYWHERE_SHARE, rng.choice(quiet, trips), origin)
    here = city.position_m(network.end[world.road[origin]])

    hot_spot = city.hot_spot[world.spot]
    spot = _gravity(rng, here, city.position_m(hot_spot), city.attraction[world.spot], TRIP_SCALE_M)
    at_spot = city.by_end[_pick(rng, city.in_ptr, hot_spot[spot])]
    some = rng.choice(quiet, min(len(quiet), 256), replace=False)
    anywhere = some[
        _gravity(rng, here, city.position_m(network.end[world.road[some]]), np.ones(len(some)), TRIP_SCALE_M)
    ]
    to_anywhere = rng.random(trips) < ANYWHERE_SHARE
    return origin, np.where(to_anywhere, anywhere, _nearest_position(world.road, at_spot))


def _gravity(
    rng: np.random.Generator, here_m: np.ndarray, there_m: np.ndarray, attraction: np.ndarray, scale_m: float
) -> np.ndarray:
    """For each point of `here_m` [A, 2] one of `there_m` [B, 2], at odds attraction * d * exp(-d / scale)."""
    distance_m = np.hypot(*np.moveaxis(here_m[:, None] - there_m[None], -1, 0))
    odds = attraction * distance_m * np.exp(-distance_m / scale_m) * (distance_m > NEAREST_END_M) + 1e-12
    cumulative = np.cumsum(odds, axis=1)
    draw = rng.random((len(here_m), 1)) * cumulative[:, -1:]
    return np.minimum((cumulative <= draw).sum(axis=1), len(there_m) - 1)


def _pick(rng: np.random.Generator, ptr: np.ndarray, row: np.ndarray) -> np.ndarray:
    """A random position of each row of a ragged table."""
    return ptr[row] + rng.integers(0, ptr[row + 1] - ptr[row])


def _nearest_position(road: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of `wanted` in `road`; a road just over the edge of the window becomes one by it in number."""
    return np.minimum(np.searchsorted(road, wanted), len(road) - 1)


def _fastest_paths(
    city: Surroundings, world: DriverWorld, profile: np.ndarray, origin: np.ndarray, destination: np.ndarray
) -> dict[int, np.ndarray]:
    """Trip -> its road ids, for the trips that have an acceptable number of roads. One search per start and profile."""
    network = city.network
    ends_m = city.position_m(network.end[world.road])
    distance_m = np.hypot(*(ends_m[origin] - ends_m[destination]).T)
    routes = {}
    search, of_search = np.unique(np.stack([profile, origin]), axis=1, return_inverse=True)
    by_search = np.split(np.argsort(of_search, kind="stable"), np.cumsum(np.bincount(of_search))[:-1])
    for (hour, source), trip in zip(search.T.tolist(), by_search, strict=True):
        limit_s = SPARE_S + distance_m[trip].max() / SLOWEST_M_PER_S
        reached_s, previous = dijkstra(world.graphs[hour], indices=source, limit=limit_s, return_predecessors=True)
        trip = trip[np.isfinite(reached_s[destination[trip]])]
        for number, path in zip(trip.tolist(), _walk_back(previous, destination[trip]), strict=True):
            if MIN_ROADS <= len(path) <= MAX_ROADS:
                routes[number] = world.road[path]
    return routes


def _walk_back(previous: np.ndarray, destination: np.ndarray) -> list[np.ndarray]:
    """The path to each destination along the predecessors (negative at the source), its last roads if too long."""
    previous = np.append(np.maximum(previous, -1), -1)  # so that -1, before the source, leads to -1
    steps = [destination]
    while len(steps) <= MAX_ROADS and (steps[-1] >= 0).any():
        steps.append(previous[steps[-1]])
    return [path[path >= 0] for path in np.stack(steps[::-1], axis=1)]


# The clock ----------------------------------------------------------------------------------------------------


def _departures(rng: np.random.Generator, trips: int) -> np.ndarray:
    """Seconds since FIRST_DAY: rush hours near 8 and 18 on weekdays, a broad afternoon on weekends."""
    weekend_day = np.arange(DAYS) % 7 % 6 == 0  # the first day is a Sunday
    day_odds = np.where(weekend_day, 0.75, 1.0)
    day = rng.choice(DAYS, trips, p=day_odds / day_odds.sum())
    kind = rng.random(trips)
    # (share up to here, hour, spread in hours)
    weekday = ((0.27, 8.0, 0.8), (0.57, 18.0, 1.1), (0.87, 13.0, 3.0), (1.0, 22.5, 2.5))
    weekend = ((0.60, 14.5, 2.8), (0.85, 19.0, 2.0), (1.0, 23.5, 2.5))
    hour = np.empty(trips)
    for of_weekend, profile in ((False, weekday), (True, weekend)):
        peak = np.searchsorted([share for share, _, _ in profile], kind)
        drawn = np.array([at for _, at, _ in profile])[peak]
        drawn = drawn + np.array([spread for _, _, spread in profile])[peak] * rng.standard_normal(trips)
        hour = np.where(weekend_day[day] == of_weekend, drawn, hour)
    return day * 86400 + (hour % 24 * 3600).astype(np.int64)


def _time_profile(depart_s: np.ndarray) -> np.ndarray:
    """Row of CONGESTION for each departure."""
    hour = depart_s % 86400 / 3600
    weekend = depart_s // 86400 % 7 % 6 == 0
    night, morning = (hour < 6) | (hour >= 22), (hour >= 7) & (hour < 9.5)
    evening = (hour >= 16.5) & (hour < 19.5)
    return np.select([night, weekend, morning, evening], [NIGHT, WEEKEND, MORNING_RUSH, EVENING_RUSH], DAY)


def _entries(
    city: Surroundings, rng: np.random.Generator, route: np.ndarray, depart_s: int, profile: int, pace: float
) -> np.ndarray:
    """Second of entry into each road of `route`."""
    spent_s = city.time_s[profile, route[:-1]].astype(np.float64)
    spent_s += _turn_delay_s(city.network, city.bearing, route[:-1], route[1:])
    spent_s *= pace * rng.lognormal(0.0, NOISE_SIGMA_TRIP) * rng.lognormal(0.0, NOISE_SIGMA_ROAD, len(spent_s))
    whole_s = np.maximum(1, np.rint(spent_s)).astype(np.int64)
    return depart_s + np.concatenate([[0], np.cumsum(whole_s)])
