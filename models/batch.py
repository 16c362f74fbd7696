"""Plain data that the models take: the static features of a road network, and a batch of trips.

Shape letters: N roads, E pairs of adjacent roads, Z zones; B trips in a batch, S steps (all positions of
all trips but the destinations, packed one after the other), K candidates (of all steps, packed).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor


class TensorRecord:
    """A dataclass of tensors (or of records of tensors) that moves between devices as one."""

    def to(self, device: torch.device | str, non_blocking: bool = False):
        """A copy with every tensor on `device`."""

        def move(value):
            if isinstance(value, Tensor | TensorRecord):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value

        return dataclasses.replace(self, **{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclass(frozen=True)
class NetworkFeatures(TensorRecord):
    """What the Road Network Encoder reads: attributes of roads and of their adjacency, and the zones.

    The model has each as a buffer of the same name, so it is part of state dicts. `kind` is what people call the part
    of the road network that it describes.
    """

    road_attr_len: Tensor = field(metadata={"kind": "road lengths"})  # [N] float32, standardised log1p(m)
    road_attr_type: Tensor = field(metadata={"kind": "highway classes"})  # [N] int64, highway class id
    road_attr_lon: Tensor = field(metadata={"kind": "coordinates"})  # [N] float32, standardised longitude of the centre
    road_attr_lat: Tensor = field(metadata={"kind": "coordinates"})  # [N] float32, standardised latitude of the centre
    road_edge_index: Tensor = field(
        metadata={"kind": "adjacency"}
    )  # [2, E] int64, adjacent roads (from, to), row-major
    intersection_attr: Tensor = field(
        metadata={"kind": "adjacency"}
    )  # [E, 2] float32, heading difference / pi, reachability
    zone_edge_index: Tensor = field(metadata={"kind": "zones"})  # [2, Ez] int64, zones with transitions (from, to)
    zone_edge_weight: Tensor = field(metadata={"kind": "zones"})  # [Ez] float32, normalised transition counts
    road2zone: Tensor = field(metadata={"kind": "zones"})  # [N] int64, zone of each road


@dataclass(frozen=True)
class MessageGraph(TensorRecord):
    """Edges of one message-passing layer, sorted by target; the loop of each target stands among them."""

    source: Tensor  # [M] int64, row in the layer's input
    target: Tensor  # [M] int64, row in the layer's output, ascending
    ptr: Tensor  # [n_out + 1] int64, the first edge of each target, and M
    edge_attr: Tensor  # [M, 2] float32
    self_row: Tensor  # [n_out] int64, row of each target in the layer's input


@dataclass(frozen=True)
class AttentionGroup(TensorRecord):
    """Consecutive trips, as a rule of similar length, padded together for attention only: G * T places.

    Grouping keeps the padding small: attention costs the square of the padded length.
    """

    num_trips: int  # G
    max_len: int  # T
    distance: Tensor  # [G, T, T] float32, km between road centres, at most 1
    time_interval: Tensor  # [G, T, T] float32, minutes between the times of day, at most 5, / 5


@dataclass(frozen=True)
class Batch(TensorRecord):
    """Trips of one training step, packed; trips in descending order of length."""

    trip_index: Tensor  # [B] int64, position of each trip in its split
    trip_len: Tensor  # [B] int64, steps of each trip
    destination_road_id: Tensor  # [B] int64
    position: Tensor  # [S] int64, place of each step among the positions of its split
    road_id: Tensor  # [S] int64
    trip_of_step: Tensor  # [S] int64, row in the batch
    temporal_info: Tensor  # [S] float32, time of day in days, negative on weekends
    candidate_len: Tensor  # [S] int64, candidates of each step
    candidate_road_id: Tensor  # [K] int64
    step_of_candidate: Tensor  # [K] int64
    candidate_index: Tensor  # [K] int64, index among the candidates of its step
    metric_distance: Tensor  # [K] float32, log1p(extra distance to the destination / 100 m)
    metric_angle: Tensor  # [K] float32, angle to the destination / pi
    label: Tensor  # [S] int64, candidate_index of the road that was taken
    label_candidate: Tensor  # [S] int64, that road's row in [K]
    log_time: Tensor  # [S] float32, log1p(seconds to the next road), standardised
    max_candidates: int  # C
    slot: Tensor  # [S] int64, place of each step among those of all groups, which lie one after the other
    groups: tuple[AttentionGroup, ...]
    share: float = 1.0  # of the steps of the whole batch, which several processes may have in parts; 0: none of them


@dataclass(frozen=True)
class PathGroup(TensorRecord):
    """Consecutive paths of similar length, padded together for attention only; P paths of at most T roads."""

    slot: Tensor  # [P, T] int32, where keys and values of each road of the path are kept; past its end any that is used
    is_past_end: Tensor  # [P, T] bool
    distance: Tensor  # [P, T] float32, from the newest road, as in `AttentionGroup`
    time_interval: Tensor  # [P, T] float32, likewise


@dataclass(frozen=True)
class NextSteps(TensorRecord):
    """One step of each of S paths: the newest road, whose keys and values are not kept yet."""

    slot: Tensor  # [S] int64, where they are to be kept
    road_id: Tensor  # [S] int64
    destination_road_id: Tensor  # [S] int64
    temporal_info: Tensor  # [S] float32, time of day in days, negative on weekends
    candidate_road_id: Tensor  # [K] int64
    step_of_candidate: Tensor  # [K] int64
    metric_distance: Tensor  # [K] float32, as in `Batch`
    metric_angle: Tensor  # [K] float32, likewise
    groups: tuple[PathGroup, ...]


@dataclass(frozen=True)
class Prediction:
    """Scores and times for each candidate of each step."""

    logits: Tensor  # [K]
    time_pred: Tensor  # [K], standardised log1p(seconds)
