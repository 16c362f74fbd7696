"""The features of a step and of its candidates, for training and for generation: one place, one definition."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch import TensorRecord
from utils.data.geometry import EARTH_RADIUS_M, unit_vectors
from utils.data.road_network import RoadNetwork

DISTANCE_CLIP_M = 1000.0
INTERVAL_CLIP_MIN = 5.0
DISTANCE_SCALE_M = 100.0  # unit of the extra distance to the destination
DAY_S = 86_400


@dataclass(frozen=True)
class RoadTables(TensorRecord):
    """What features are gathered from, for each road or relation, on the device."""

    center_m: Tensor  # [N, 3] float64, centres on the Earth's sphere
    end: Tensor  # [N, 2] float64, (lon, lat) of the last point, degrees
    reach_ptr: Tensor  # [N + 1] int64
    reach_road: Tensor  # [R] int64
    reach_heading: Tensor  # [R] float64

    @staticmethod
    def from_network(network: RoadNetwork) -> "RoadTables":
        center = unit_vectors(network.center[:, 0], network.center[:, 1]) * EARTH_RADIUS_M
        return RoadTables(
            center_m=torch.from_numpy(center),
            end=torch.from_numpy(network.end),
            reach_ptr=torch.from_numpy(network.reach_ptr),
            reach_road=torch.from_numpy(network.reach_road),
            reach_heading=torch.from_numpy(network.reach_heading),
        )


def is_weekend(time_s: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether times (seconds since 1970) are on a Saturday or Sunday."""
    return (time_s // DAY_S + 3) % 7 >= 5  # day 0, 1 January 1970, was a Thursday


def temporal_info(time_s: NDArray[np.int64], began_on_weekend: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Time of day in days, [n]; negative where the trip began on a weekend.

    Args:
        time_s: [n], seconds since 1970.
        began_on_weekend: [n].
    """
    second = time_s % DAY_S
    minute = second // 60 + (second % 60) / 60.0
    return (minute / 1440.0).astype(np.float32) * np.where(began_on_weekend, np.float32(-1), np.float32(1))


def center_distance_m(tables: RoadTables, road: Tensor, other: Tensor) -> Tensor:
    """Great-circle distances between the centres of roads, [n] float64."""
    chord = (tables.center_m[road] - tables.center_m[other]).square().sum(1).sqrt()
    return 2 * EARTH_RADIUS_M * torch.asin((chord / (2 * EARTH_RADIUS_M)).clamp(max=1.0))


def metric_distance(distance_m: Tensor, step: Tensor, num_steps: int) -> Tensor:
    """log1p((distance to the destination - the least among the step's candidates) / 100 m), [K].

    Args:
        distance_m: [K], from the centre of each candidate to that of the destination.
        step: [K], the step of each candidate.
        num_steps: S.
    """
    distance = distance_m.float()
    least = distance.new_full((num_steps,), float("inf")).scatter_reduce(0, step, distance, "amin")
    return ((distance - least[step]) / DISTANCE_SCALE_M).log1p()


def metric_angle(tables: RoadTables, road: Tensor, destination: Tensor, relation: Tensor, step: Tensor) -> Tensor:
    """Angle between the headings to the candidate and to the destination, / pi, [K].

    Longitude and latitude are swapped as in `road_network.candidate_heading`, which says why.

    Args:
        tables: of the road network.
        road: [S], of each step.
        destination: [S], the road that its trip leads to.
        relation: [K], row of each candidate in `tables.reach_road`.
        step: [K], the step of each candidate.
    """
    start, end = tables.end[road], tables.end[destination]
    delta = end - start
    heading = torch.atan2(delta[:, 0], torch.cos(start[:, 0] * (torch.pi / 180)) * delta[:, 1])
    heading = torch.where(heading < 0, heading + 2 * torch.pi, heading)
    difference = (tables.reach_heading[relation] - heading[step]).abs().float()
    return torch.where(difference > torch.pi, 2 * torch.pi - difference, difference) / torch.pi


def clipped_km(distance_m: Tensor) -> Tensor:
    """Distances between steps for the attention: clipped to 1 km, in km, float32; `distance_m` is overwritten.

    Straight through the Earth instead of along its surface: below the clip that is the same to 1e-9.
    """
    return distance_m.clamp_(max=DISTANCE_CLIP_M).div_(DISTANCE_CLIP_M).float()


def clipped_interval(minutes: Tensor) -> Tensor:
    """Intervals between steps for the attention: clipped to 5 minutes, / 5 minutes; `minutes` is overwritten."""
    return minutes.abs_().clamp_(max=INTERVAL_CLIP_MIN).div_(INTERVAL_CLIP_MIN)
