"""How far the distributions of generated trips are from those of real trips, and of real ones from real ones.

Jensen-Shannon divergences (JSD) have the natural logarithm, so they are ln 2 = 0.693 at most. Bins are those of the
published notebook: 99 equal ones from 0 to the greatest real value, and a last one for what is greater.
"""

import math
from collections.abc import Callable, Sequence
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
    has_cosine: bool = False  # is also compared by the cosine of its counts


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
        Quantity(
            "distance",
            "length of a trip, centre to centre",
            "km",
            lambda t: _one_each(measures.trip_lengths_km(t, center)),
        ),
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
        Quantity("road_usage", "road usage", "", lambda t: Values(t.road_id, t.offset), has_cosine=True),
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
    """JSD of a quantity with interval and floor, and Wasserstein distance of the values where they have an order.

    Of road usage, also the cosine similarity.
    """
    quantity, real, made = reference.quantity, reference.real, reference.quantity.measure(generated)
    names = f"{quantity.key}_jsd", f"JSD of the {quantity.label}", "nats"
    if not len(made.value) or not len(real.value):
        return [Figure(*names, 0, math.nan)]
    floor = _floor(reference.floor(len(generated), seed)[0])
    number = len(made.value)
    if not quantity.unit:
        (real_place, made_place), width = reference.places(real, made)
        tables = real.table(real_place, width), made.table(made_place, width)
        distances = [Distance(names, jensen_shannon, (0, MAX_JSD), floor)]
        if quantity.has_cosine:
            names = f"{quantity.key}_cosine", f"cosine similarity of the {quantity.label}", ""
            distances.append(Distance(names, cosine, (0, 1)))
        return _with_intervals(distances, number, tables, seed)
    support, inverse = np.unique(np.concatenate([real.value, made.value]), return_inverse=True)
    first, second = np.split(inverse, [len(real.value)])
    tables = real.table(first, len(support)), made.table(second, len(support))
    places, bins = np.searchsorted(reference.edges, support, side="right") - 1, len(reference.edges) - 1
    # From counts of the distinct values to counts of the bins: both distances come from one resample.
    to_bins = csr_array((np.ones(len(support)), places, np.arange(len(support) + 1)), shape=(len(support), bins))
    gaps = np.diff(support).astype(np.float64)

    def binned(distance: Callable[[Floats, Floats], Floats]) -> Callable[[Floats, Floats], Floats]:
        return lambda p, q: distance(p @ to_bins, q @ to_bins)

    def along_a_line(p: Floats, q: Floats) -> Floats:
        return np.abs(_cumulative(p) - _cumulative(q))[..., :-1] @ gaps

    jsd = Distance(names, binned(jensen_shannon), (0, MAX_JSD), floor)
    names = f"{quantity.key}_w1_{quantity.unit}", f"Wasserstein-1 of the {quantity.label}", quantity.unit
    wasserstein = binned(_circular_distance) if quantity.is_circular else along_a_line
    return _with_intervals([jsd, Distance(names, wasserstein, (0, np.inf))], number, tables, seed)


def _cumulative(counts: Floats) -> Floats:
    return np.cumsum(counts, axis=-1) / counts.sum(axis=-1, keepdims=True)


def _circular_distance(p: Floats, q: Floats) -> Floats:
    """Wasserstein-1 of counts [..., K] on a circle of K equal bins, in bins (Rabin, Delon and Gousseau 2011)."""
    difference = _cumulative(p) - _cumulative(q)
    return np.abs(difference - np.median(difference, axis=-1, keepdims=True)).sum(axis=-1)


def cosine(p: Floats, q: Floats) -> Floats:
    """Cosine similarity of counts [..., K]."""
    return (p * q).sum(axis=-1) / np.sqrt((p**2).sum(axis=-1) * (q**2).sum(axis=-1))


def _floor(draws: Floats) -> Floor:
    low, high = np.quantile(draws, [0.05, 0.95])
    return Floor(float(draws.mean()), float(low), float(high))


@dataclass(frozen=True)
class Distance:
    """How far two samples of trips are apart, from the counts [..., K] of both."""

    names: tuple[str, str, str]  # key, label, unit of its figure
    of: Callable[[Floats, Floats], Floats]
    bounds: tuple[float, float]  # what it is at least and at most
    floor: Floor | None = None


def _with_intervals(
    distances: Sequence[Distance], number: int, tables: tuple[csr_array, csr_array], seed: int
) -> list[Figure]:
    """Distances between the counts of two samples of trips; the intervals are from resampling the trips of both."""
    real, made = tables
    draws: list[list[Floats]] = [[] for _ in distances]
    for real_weight, made_weight in resample([real.shape[0], made.shape[0]], seed, real.shape[1]):
        p, q = real_weight @ real, made_weight @ made
        for found, distance in zip(draws, distances, strict=True):
            found.append(distance.of(p, q))
    figures = []
    for found, distance in zip(draws, distances, strict=True):
        value = float(distance.of(real.sum(axis=0), made.sum(axis=0)))
        low, high = unbiased_interval(value, np.concatenate(found), distance.bounds)
        figures.append(Figure(*distance.names, number, value, low, high, distance.floor))
    return figures
