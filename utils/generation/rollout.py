"""Generating trips: from a start to a destination, one most likely road after the other."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.hoser import HOSER
from utils.data.loader import BatchLoader, RoadTables
from utils.data.road_network import RoadNetwork
from utils.data.trips import TimeStatistics, Trips


@torch.no_grad()
def greedy_trips(
    model: HOSER,
    embeddings: tuple[Tensor, Tensor],
    network: RoadNetwork,
    statistics: TimeStatistics,
    queries: Sequence[tuple[int, int, int]],
    max_roads: Sequence[int],
) -> list[tuple[list[int], list[int]]]:
    """Roads and entry times (seconds since 1970) of trips that take the best candidate at each step.

    Args:
        model: in evaluation mode.
        embeddings: `model.embed_network()`.
        network: the roads.
        statistics: of the training trips.
        queries: first road, when it is entered (seconds since 1970), and last road of each trip. A trip ends there
            (not without a step: the two may be one), at a dead end, or with its number of roads.
        max_roads: the most roads of each trip.
    """
    tables = RoadTables.from_network(network).to(embeddings[0].device)
    trips = [([origin], [start_s]) for origin, start_s, _ in queries]
    successors = np.diff(network.reach_ptr)
    while True:
        active = [
            i
            for i, ((roads, _), (_, _, destination)) in enumerate(zip(trips, queries, strict=True))
            if (roads[-1] != destination or len(roads) == 1) and len(roads) < max_roads[i] and successors[roads[-1]]
        ]
        if not active:
            return trips
        loader = _loader([trips[i] for i in active], [queries[i][2] for i in active], tables, statistics)
        batch = loader.batch(np.arange(len(active)))
        prediction = model(batch, embeddings)
        last_step = batch.trip_len.cumsum(0) - 1
        first_candidate = batch.candidate_len.cumsum(0) - batch.candidate_len
        for row, step in enumerate(last_step.tolist()):
            places = slice(int(first_candidate[step]), int(first_candidate[step] + batch.candidate_len[step]))
            best = int(prediction.logits[places].argmax()) + places.start
            log_time = float(prediction.time_pred[best]) * statistics.std + statistics.mean
            roads, times = trips[active[int(batch.trip_index[row])]]
            roads.append(int(batch.candidate_road_id[best]))
            times.append(times[-1] + max(0, round(np.expm1(log_time))))


def _loader(
    trips: list[tuple[list[int], list[int]]], destinations: list[int], tables: RoadTables, statistics: TimeStatistics
) -> BatchLoader:
    """Trips so far, each with its destination behind it."""
    roads = [[*so_far, destination] for (so_far, _), destination in zip(trips, destinations, strict=True)]
    times = [[*so_far, so_far[-1]] for _, so_far in trips]
    packed = Trips(
        offset=np.cumsum([0, *map(len, roads)]),
        road_id=np.concatenate(roads).astype(np.int32),
        time_s=np.concatenate(times),
        label=np.zeros(sum(map(len, roads)), dtype=np.int32),  # labels are not read
    )
    return BatchLoader(packed, tables, statistics, len(trips), tables.end.device)
