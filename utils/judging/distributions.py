"""How far the distributions of generated trips are from those of real trips, and of real ones from real ones.

Jensen-Shannon divergences (JSD) have the natural logarithm, so they are ln 2 = 0.693 at most. Bins are those of the
published notebook: 99 equal ones from 0 to the greatest real value, and a last one for what is greater.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import rel_entr

from utils.data.trips import Trips
from utils.judging import measures
from utils.judging.figures import Figure, Floor, resample, unbiased_interval
from utils.judging.generated import first_roads, last_roads

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BIN_EDGES = 100
DRAWS = 200  # of real trips, for the noise floor
MAX_JSD = math.log(2)


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """JSD of counts [..., K], as published: counts are divided by their sum + 1e-14."""
    p, q = (counts / (counts.sum(axis=-1, keepdims=True) + 1e-14) for counts in (p, q))
    middle = (p + q) / 2
    # SciPy's entropy, which the published code calls, normalises once more.
    p, q, middle = (part / part.sum(axis=-1, keepdims=True) for part in (p, q, middle))
    return (rel_entr(p, middle).sum(axis=-1) + rel_entr(q, middle).sum(axis=-1)) / 2


def published_edges(real: Floats) -> Floats:
    """Edges of 100 bins: np.linspace(0, greatest real value, 100) and infinity."""
    return np.append(np.linspace(0, real.max(initial=0.0), BIN_EDGES), np.inf)


@dataclass(frozen=True)
class Values:
    """Some values of each trip: of n trips, V values."""

    value: NDArray  # [V], numbers or ids
    offset: Ints  # [n + 1], trip i has value[offset[i] : offset[i + 1]]

    def of(self, chosen: Ints) -> NDArray:
        """The values of the chosen trips, one after the other."""
        first, length = self.offset[chosen], np.diff(self.offset)[chosen]
        ends = np.cumsum(length)
        return self.value[np.repeat(first - ends + length, length) + np.arange(ends[-1] if len(ends) else 0)]

    def table(self, place: Ints, number: int) -> csr_array:
        """How often each trip has each of `number` values, [n, number]; `place` [V] is each value's."""
        return csr_array((np.ones(len(place)), place, self.offset), shape=(len(self.offset) - 1, number))


def _one_each(values: NDArray) -> Values:
    return Values(values, np.arange(len(values) + 1))


@dataclass(frozen=True)
class Quantity:
    """Something that trips have a distribution of."""

    key: str  # of its JSD, without `_jsd`
    label: str
    unit: str  # of the Wasserstein distance; empty: the values have no order
    measure: Callable[[Trips], Values]
    edges: Callable[[Floats], Floats] = published_edges  # from the real values
    is_circular: bool = False  # 23 h is beside 0 h


def whole_edges(real: Floats) -> Floats:
    """A bin for each whole number up to the greatest real one, and one for what is greater."""
    return np.append(np.arange(real.max(initial=0) + 2, dtype=np.float64), np.inf)


def quantities(center: Floats, cell_of_road: Ints) -> dict[str, Quantity]:
    """All quantities by their keys.

    Args:
        center: [N, 2], (lon, lat) of the roads in degrees.
        cell_of_road: [N], id of the cell that each road is in.
    """
    cells = int(cell_of_road.max()) + 1

    def flows(trips: Trips) -> Values:
        return _one_each(cell_of_road[first_roads(trips)] * cells + cell_of_road[last_roads(trips)])

    steps = Quantity(
        "duration",
        "time per road",
        "min",
        lambda trips: Values(measures.step_minutes(trips), trips.offset - np.arange(len(trips.offset))),
    )
    found = [
        Quantity("distance", "length of a trip", "km", lambda t: _one_each(measures.trip_lengths_km(t, center))),
        Quantity("radius", "radius of a trip", "km", lambda t: _one_each(measures.trip_radii_km(t, center))),
        steps,
        Quantity("trip_duration", "duration of a trip", "min", lambda t: _one_each(measures.trip_seconds(t) / 60)),
        Quantity(
            "departure_hour",
            "hour of departure",
            "h",
            lambda t: _one_each(measures.departure_hours(t)),
            lambda real: np.arange(25.0),
            is_circular=True,
        ),
        Quantity("roads_per_trip", "roads of a trip", "roads", lambda t: _one_each(np.diff(t.offset)), whole_edges),
        Quantity("road_usage", "road usage", "", lambda t: Values(t.road_id, t.offset)),
        Quantity("od_flow", "flows between cells", "", flows),
    ]
    return {quantity.key: quantity for quantity in found}


@dataclass(frozen=True)
class Reference:
    """What the distributions of generated trips are compared with: the real trips, and draws from train.csv."""

    quantity: Quantity
    real_trips: Trips
    train_trips: Trips
    _floors: dict[int, tuple[Floats, Floats | None]] = field(default_factory=dict)  # by number of trips

    @cached_property
    def real(self) -> Values:
        return self.quantity.measure(self.real_trips)

    @cached_property
    def edges(self) -> Floats:
        """Edges of the bins."""
        return self.quantity.edges(self.real.value)

    def places(self, *samples: Values) -> tuple[list[Ints], int]:
        """The bin, or the place among all distinct values, of each value of the samples; and how many there are."""
        if self.quantity.unit:
            found = [np.searchsorted(self.edges, sample.value, side="right") - 1 for sample in samples]
            return found, len(self.edges) - 1
        distinct, inverse = np.unique(np.concatenate([sample.value for sample in samples]), return_inverse=True)
        return np.split(inverse, np.cumsum([len(sample.value) for sample in samples])[:-1]), len(distinct)

    def floor(self, number: int, seed: int) -> tuple[Floats, Floats | None]:
        """JSD [DRAWS] between the real trips and `number` trips of train.csv drawn at random, and the draws' counts.

        Counts [DRAWS, K] are of quantities with bins only. Without replacement, unless train.csv has fewer trips.
        """
        if number not in self._floors:
            train = self.quantity.measure(self.train_trips)
            (train_place, real_place), width = self.places(train, self.real)
            train = Values(train_place, train.offset)
            real_counts = np.bincount(real_place, minlength=width).astype(np.float64)
            generator, size = np.random.default_rng(seed), len(self.train_trips)
            divergences, counts = [], []
            for _ in range(DRAWS):
                chosen = generator.choice(size, number, replace=number > size)
                drawn = np.bincount(train.of(chosen), minlength=width).astype(np.float64)
                divergences.append(jensen_shannon(drawn, real_counts))
                if self.quantity.unit:
                    counts.append(drawn)
            self._floors[number] = np.array(divergences), np.array(counts) if counts else None
        return self._floors[number]


def divergence(reference: Reference, generated: Trips, seed: int) -> list[Figure]:
    """JSD of a quantity with interval and floor, and Wasserstein distance of the values where they have an order."""
    quantity, real, made = reference.quantity, reference.real, reference.quantity.measure(generated)
    if not len(made.value) or not len(real.value):
        return [Figure(f"{quantity.key}_jsd", f"JSD of the {quantity.label}", "nats", 0, math.nan)]
    (real_place, made_place), width = reference.places(real, made)
    tables = real.table(real_place, width), made.table(made_place, width)
    figures = [
        _with_interval(
            (f"{quantity.key}_jsd", f"JSD of the {quantity.label}", "nats"),
            len(made.value),
            tables,
            jensen_shannon,
            (0, MAX_JSD),
            seed,
            _floor(reference.floor(len(generated), seed)[0]),
        )
    ]
    if quantity.is_circular:
        names = f"{quantity.key}_w1_{quantity.unit}", f"Wasserstein-1 of the {quantity.label}", quantity.unit
        figures.append(_with_interval(names, len(made.value), tables, _circular_distance, (0, np.inf), seed))
    elif quantity.unit:
        names = f"{quantity.key}_w1_{quantity.unit}", f"Wasserstein-1 of the {quantity.label}", quantity.unit
        support, inverse = np.unique(np.concatenate([real.value, made.value]), return_inverse=True)
        first, second = np.split(inverse, [len(real.value)])
        tables = real.table(first, len(support)), made.table(second, len(support))
        gaps = np.diff(support).astype(np.float64)

        def distance(p: Floats, q: Floats) -> Floats:
            return np.abs(_cumulative(p) - _cumulative(q))[..., :-1] @ gaps

        figures.append(_with_interval(names, len(made.value), tables, distance, (0, np.inf), seed))
    return figures


def _cumulative(counts: Floats) -> Floats:
    return np.cumsum(counts, axis=-1) / counts.sum(axis=-1, keepdims=True)


def _circular_distance(p: Floats, q: Floats) -> Floats:
    """Wasserstein-1 of counts [..., K] on a circle of K equal bins, in bins (Rabin, Delon and Gousseau 2011)."""
    difference = _cumulative(p) - _cumulative(q)
    return np.abs(difference - np.median(difference, axis=-1, keepdims=True)).sum(axis=-1)


def cosine(p: Floats, q: Floats) -> Floats:
    """Cosine similarity of counts [..., K]."""
    return (p * q).sum(axis=-1) / np.sqrt((p**2).sum(axis=-1) * (q**2).sum(axis=-1))


def usage_cosine(reference: Reference, generated: Trips, seed: int) -> Figure:
    """Cosine similarity of how often each road is taken."""
    real, made = reference.real, reference.quantity.measure(generated)
    places, width = reference.places(real, made)
    tables = real.table(places[0], width), made.table(places[1], width)
    names = "road_usage_cosine", "cosine similarity of the road usage", ""
    return _with_interval(names, len(made.value), tables, cosine, (0, 1), seed)


def _floor(draws: Floats) -> Floor:
    low, high = np.quantile(draws, [0.05, 0.95])
    return Floor(float(draws.mean()), float(low), float(high))


def _with_interval(
    names: tuple[str, str, str],
    number: int,
    tables: tuple[csr_array, csr_array],
    distance: Callable[[Floats, Floats], Floats],
    bounds: tuple[float, float],
    seed: int,
    floor: Floor | None = None,
) -> Figure:
    """A distance between the counts of two samples of trips; the interval is from resampling the trips of both."""
    real, made = tables
    value = float(distance(real.sum(axis=0), made.sum(axis=0)))
    draws = [
        distance(real_weight @ real, made_weight @ made)
        for real_weight, made_weight in resample([real.shape[0], made.shape[0]], seed, real.shape[1])
    ]
    low, high = unbiased_interval(value, np.concatenate(draws), bounds)
    return Figure(*names, number, value, low, high, floor)
