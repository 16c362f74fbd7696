"""Streets as a map file has them, before they become roads, and what is counted on the way."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from utils.data.geometry import EARTH_RADIUS_M
from utils.errors import UserError

Point = tuple[float, float]  # (lon, lat) in degrees, 7 decimals


@dataclass(frozen=True)
class Piece:
    """A stretch of a street that is from one way of the map."""

    ways: tuple[str, ...]  # ids of OSM ways
    classes: tuple[str, ...]  # of `highway`
    length_m: float


@dataclass
class Street:
    """A line between two nodes that may be driven forward, backward, or both."""

    nodes: list[int]  # OSM node ids along it, the two ends at least
    points: list[Point]
    forward: bool
    backward: bool
    pieces: list[Piece]  # in the order of the points
    forward_edges: list[int] = field(default_factory=list)  # numbers of the edges of a GraphML that it is made of
    backward_edges: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Restriction:
    """A ban (`no_left_turn`) or an order (`only_straight_on`) at a node."""

    kind: str
    origins: frozenset[str]  # ids of ways
    node: int
    destinations: frozenset[str]

    def forbids(self, origin: str, destination: str, is_way_back: bool) -> bool:
        """Whether it forbids the turn from one way into another one, or back into the same road.

        A way that the map does not cut at the node lies on both sides of it: `no_u_turn` from it into itself speaks of
        the way back, every other kind of the way on.
        """
        if origin not in self.origins:
            return False
        is_named = destination in self.destinations
        if origin == destination:
            is_named &= is_way_back == self.kind.endswith("u_turn")
        return is_named != self.kind.startswith("only_")


@dataclass
class StreetMap:
    """What was read from a map file."""

    streets: list[Street]
    restrictions: list[Restriction]
    counts: Counter[str]  # what was left out or mended, by reason


def line_length_m(points: list[Point]) -> float:
    """Length along a line, by the haversine formula, in metres."""
    lon, lat = np.radians(np.array(points)).T
    chord = np.sin(np.diff(lat) / 2) ** 2 + np.cos(lat[:-1]) * np.cos(lat[1:]) * np.sin(np.diff(lon) / 2) ** 2
    return float((2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(chord))).sum())


def check_longitudes(points: NDArray[np.float64], path: object) -> None:
    """Refuse a map whose streets lie on both sides of the 180th meridian; points [n, 2] (lon, lat).

    Raises:
        UserError: they do.
    """
    west, east = points[:, 0].min(), points[:, 0].max()
    if east - west > 180:
        raise UserError(
            f"{path}: the roads reach from {west:.4f} to {east:.4f} degrees of longitude: a city across the 180th "
            "meridian cannot be imported; cut out one side with --bbox WEST,SOUTH,EAST,NORTH"
        )
