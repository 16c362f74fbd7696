"""Geometry on the sphere, vectorised, in float64."""

import numpy as np
from numpy.typing import NDArray

EARTH_RADIUS_M = 6_371_008.8

Floats = NDArray[np.float64]


def unit_vectors(lon_deg: Floats, lat_deg: Floats) -> Floats:
    """Points on the unit sphere, [..., 3]."""
    lon, lat = np.radians(lon_deg), np.radians(lat_deg)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def distances_km(points: Floats, point: Floats) -> Floats:
    """Great-circle distances [n] of `points` [n, 2] to `point` [2], (lon, lat) in degrees."""
    chord = np.linalg.norm(unit_vectors(points[:, 0], points[:, 1]) - unit_vectors(*point), axis=1)
    return 2 * EARTH_RADIUS_M / 1000 * np.arcsin(np.minimum(chord / 2, 1.0))


def heading(y1: Floats, x1: Floats, y2: Floats, x2: Floats) -> Floats:
    """Direction from point 1 to point 2 in [0, 2 pi), anticlockwise from the x axis; degrees in.

    The published code's formula: an equirectangular projection at point 1, where y is meant to be the
    latitude and x the longitude (but see `road_network.py` for a call that swaps them).
    """
    angle = np.arctan2(y2 - y1, np.cos(np.pi / 180 * y1) * (x2 - x1))
    return np.where(angle < 0, angle + 2 * np.pi, angle)


def polyline_centroids(points: Floats, offset: NDArray[np.int64]) -> Floats:
    """Length-weighted centroid of each polyline, in the units of its points (degrees).

    Args:
        points: [P, 2], the points of all polylines, packed; at least 2 each.
        offset: [N + 1], polyline i is points[offset[i] : offset[i + 1]].

    Returns:
        [N, 2]; of a polyline without length, its point.
    """
    num_lines = len(offset) - 1
    line = np.repeat(np.arange(num_lines), np.diff(offset) - 1)
    first = np.delete(np.arange(len(points)), offset[1:] - 1)
    delta = points[first + 1] - points[first]
    length = np.sqrt((delta**2).sum(axis=1))
    middle = (points[first] + points[first + 1]) / 2
    total = np.bincount(line, length, num_lines)
    sums = [np.bincount(line, length * middle[:, axis], num_lines) for axis in (0, 1)]
    safe_total = np.where(total > 0, total, 1.0)
    centroid = np.stack(sums, axis=1) / safe_total[:, None]
    return np.where(total[:, None] > 0, centroid, points[offset[:-1]])
