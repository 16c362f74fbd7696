"""Trips for queries, by any method."""

from collections.abc import Iterator, Sequence

from utils.data.csv_reader import without_garbage_collection
from utils.data.road_network import RoadNetwork
from utils.generation.options import SLOTS, GenerationOptions
from utils.generation.paths import PathModel, Query, Trip
from utils.generation.reachability import Reachability
from utils.generation.search import SearchRule, search_trips
from utils.generation.times import TimeResiduals
from utils.generation.walk import WalkRule, walk_trips


class TripGenerator:
    """Makes trips for queries, many at once."""

    def __init__(
        self,
        paths: PathModel,
        network: RoadNetwork,
        options: GenerationOptions,
        max_len: int,
        slots: int = SLOTS,
        residuals: TimeResiduals | None = None,
    ):
        """Keep what is needed.

        Args:
            paths: the model.
            network: the roads.
            options: which trips.
            max_len: `trajectory_encoder_config.max_len`, steps after which a walk ends.
            slots: queries that are worked on at once.
            residuals: that times are drawn with; by default they are the predicted ones.
        """
        self._paths, self._options, self._residuals, self._slots = paths, options, residuals, slots
        self._max_steps = min(options.max_expansions or max_len, max_len)
        self._reachability = Reachability(network)

    def trips(self, queries: Sequence[Query]) -> Iterator[tuple[int, list[Trip]]]:
        """The place of each query and its trips, best first, in the order in which they are found."""
        hopeless = [not self._reachability.to(query.destination)(query.origin) for query in queries]
        for place, query in enumerate(queries):
            if hopeless[place]:
                yield place, [Trip.from_node(self._paths.start(query), "unreachable", 0)]
        places = [place for place in range(len(queries)) if not hopeless[place]]
        chosen = [queries[place] for place in places]
        with without_garbage_collection(), self._paths.cores:
            for i, trips in self._reached(chosen):
                if self._residuals is not None:
                    seed = self._options.seed
                    trips = [self._residuals.draw(trip, chosen[i], rank, seed) for rank, trip in enumerate(trips)]
                yield places[i], trips

    def _reached(self, queries: Sequence[Query]) -> Iterator[tuple[int, list[Trip]]]:
        options = self._options
        if options.method in ("search", "exact"):
            rule = SearchRule(options.k, options.method == "exact", options.max_expansions)
            return search_trips(self._paths, self._reachability, queries, rule, self._slots)
        temperature = options.temperature if options.method == "sample" else None
        rule = WalkRule(options.k, temperature, options.top_k, options.seed)
        limits = [self._max_steps] * len(queries)
        return walk_trips(self._paths, self._reachability, queries, rule, limits, self._slots)
