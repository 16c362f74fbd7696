"""Generating a trip: from a start to a destination, one most likely road after the other."""

import numpy as np
import torch
from torch import Tensor

from models.hoser import HOSER
from utils.loader import BatchLoader, RoadTables, TimeStatistics
from utils.road_network import RoadNetwork
from utils.trajectories import Trips


@torch.no_grad()
def greedy_trip(
    model: HOSER,
    embeddings: tuple[Tensor, Tensor],
    network: RoadNetwork,
    statistics: TimeStatistics,
    start: int,
    start_time_s: int,
    destination: int,
    max_roads: int,
) -> tuple[list[int], list[int]]:
    """Roads and entry times (seconds since 1970) of the trip that takes the best candidate at each step.

    Args:
        model: in evaluation mode.
        embeddings: `model.embed_network()`.
        network: the roads.
        statistics: of the training trips.
        start: first road.
        start_time_s: when it is entered.
        destination: last road; the trip ends there, at a dead end, or with `max_roads` roads.
        max_roads: limit.
    """
    tables = RoadTables.of(network).to(embeddings[0].device)
    roads, times = [start], [start_time_s]
    while roads[-1] != destination and len(roads) < max_roads:
        if network.reach_ptr[roads[-1]] == network.reach_ptr[roads[-1] + 1]:
            break
        loader = _one_trip([*roads, destination], [*times, times[-1]], tables, statistics)
        batch = loader.batch(np.array([0]))
        prediction = model(batch, embeddings)
        last = batch.step_of_candidate == len(roads) - 1
        best = int(prediction.logits[last].argmax())
        log_time = float(prediction.time_pred[last][best]) * statistics.std + statistics.mean
        roads.append(int(batch.candidate_road_id[last][best]))
        times.append(times[-1] + max(1, round(np.expm1(log_time))))
    return roads, times


def _one_trip(roads: list[int], times: list[int], tables: RoadTables, statistics: TimeStatistics) -> BatchLoader:
    trips = Trips(
        offset=np.array([0, len(roads)]),
        road_id=np.array(roads, dtype=np.int32),
        time_s=np.array(times),
        next_rank=np.zeros(len(roads), dtype=np.int32),  # labels are not read
    )
    return BatchLoader(trips, tables, statistics, 1, tables.end.device)
