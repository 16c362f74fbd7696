"""All figures of a file of generated trips."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from utils.data.road_network import RoadNetwork
from utils.data.trips import Trips
from utils.errors import UserError
from utils.judging.cells import OWN_BOX, PublishedGrid, cell_ids
from utils.judging.distributions import Reference, divergence, quantities
from utils.judging.figures import Column, Figure, figures_of
from utils.judging.generated import GeneratedTrips, are_sampled_from, match_queries
from utils.judging.published import Block, fork_block, published_block
from utils.judging.same_query import QueryMetrics, extra_numbers, query_metrics, same_query_figures

Floats = NDArray[np.float64]

FEW = 1000  # trips, below which divergences are mostly noise
OWN_DISTRIBUTIONS = ("trip_duration", "departure_hour", "roads_per_trip", "road_usage", "od_flow")


@dataclass(frozen=True)
class Judge:
    """What generated trips are compared with."""

    network: RoadNetwork
    length_m: Floats  # [N], of the roads
    real: Trips
    real_name: str  # test.csv
    train: Callable[[], Trips]  # read when it is needed first
    seed: int = 0  # of the resamples and of the draws for the noise floor

    @cached_property
    def train_trips(self) -> Trips:
        return self.train()

    @cached_property
    def references(self) -> dict[str, Reference]:
        """What each quantity is compared with, by its key."""
        center = self.network.center
        (west, south), (east, north) = center.min(axis=0).tolist(), center.max(axis=0).tolist()
        cells = PublishedGrid(OWN_BOX, (west, east, south, north)).cells(center)
        found = quantities(center, cell_ids(cells))
        return {key: Reference(quantity, self.real, self.train_trips) for key, quantity in found.items()}

    def query_metrics(self, generated: GeneratedTrips) -> QueryMetrics | None:
        """The trips beside the real trips of their queries; None if the queries are sampled from train.csv.

        Raises:
            UserError: no trip has a query in common with the real trips, nor with train.csv.
        """
        match = match_queries(generated, self.real)
        number = int((match >= 0).sum())
        if not number:
            if are_sampled_from(generated, self.train_trips):
                return None
            raise UserError(
                f"{generated.source}: no common query: no trip has the origin, start time and destination of a trip "
                f"of {self.real_name}; name with --real the trips that the queries are from"
            )
        if number < len(generated):
            logger.warning(
                f"{generated.source}: {len(generated) - number:,} of {len(generated):,} trips have no query in common "
                f"with {self.real_name}; they are left out where trips are compared with the real trip of their query"
            )
        return query_metrics(generated, self.real, match, self.network.center, self.length_m)


@dataclass(frozen=True)
class Judgement:
    """The figures of one file."""

    label: str
    source: str
    trips: Trips
    published: Block
    fork: Block
    same_query: list[Figure]  # empty: the queries are sampled from train.csv
    distributions: list[Figure]
    extra: dict[str, float]
    queries: QueryMetrics | None


def judge_trips(judge: Judge, generated: GeneratedTrips, label: str) -> Judgement:
    """All figures of generated trips.

    Args:
        judge: what they are compared with.
        generated: the trips.
        label: name of the model, for tables and pictures.

    Raises:
        UserError: they have no query in common with the real trips.
    """
    queries = judge.query_metrics(generated)
    if queries is None:
        logger.info(
            f"{generated.source}: its queries are sampled from train.csv, so it is compared with {judge.real_name} as "
            "a whole, not trip by trip"
        )
    trips, seed = generated.trips, judge.seed
    arguments = judge.references, judge.real, trips, judge.network, seed
    published, fork = published_block(*arguments), fork_block(*arguments)
    own = [figure for key in OWN_DISTRIBUTIONS for figure in divergence(judge.references[key], trips, seed)]
    own += _character(judge, trips)
    usage = next(figure.value for figure in own if figure.key == "road_usage_jsd")
    return Judgement(
        label=label,
        source=generated.source,
        trips=trips,
        published=published,
        fork=fork,
        same_query=same_query_figures(queries, seed) if queries else [],
        distributions=own,
        extra=extra_numbers(queries, usage) if queries else {"road_usage_jsd": usage},
        queries=queries,
    )


def _character(judge: Judge, trips: Trips) -> list[Figure]:
    """What kind of trips these are, and the real ones."""
    paths, real_paths = _paths(trips), _paths(judge.real)
    known = set(_paths(judge.train_trips))
    figures = []
    for prefix, source, found in (("", trips, paths), ("real_", judge.real, real_paths)):
        columns = [
            ("valid", "share along roadmap.rel", _valid(source)),
            ("loops", "share that takes a road twice", _loops(source)),
            ("in_train", "share of paths that train.csv has", np.array([path in known for path in found])),
        ]
        figures += figures_of(
            [Column(prefix + key, label, "", flags, real_of=prefix and key) for key, label, flags in columns],
            judge.seed,
        )
        # No interval: a resample has repetitions of its own.
        unique = len(set(found)) / len(found)
        figures.append(
            Figure(f"{prefix}unique", "distinct paths / trips", "", len(found), unique, real_of=prefix and "unique")
        )
    return figures


def _paths(trips: Trips) -> list[bytes]:
    roads = trips.road_id.astype(np.int32)
    offset = trips.offset.tolist()
    return [roads[start:end].tobytes() for start, end in itertools.pairwise(offset)]


def _valid(trips: Trips) -> NDArray[np.bool_]:
    """Whether each road of a trip can follow the one before it, [n]."""
    return np.minimum.reduceat(trips.label, trips.offset[:-1]) >= 0


def _loops(trips: Trips) -> NDArray[np.bool_]:
    """Whether a trip takes a road more than once, [n]."""
    trip = np.repeat(np.arange(len(trips)), np.diff(trips.offset))
    order = np.lexsort((trips.road_id, trip))
    again = (np.diff(trip[order]) == 0) & (np.diff(trips.road_id[order]) == 0)
    return np.bincount(trip[order][1:][again], minlength=len(trips)) > 0
