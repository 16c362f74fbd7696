"""Axes of a map."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray


def zoom(axes: Axes, points: NDArray[np.float64], margin: float = 0.15) -> None:
    """Show the square around points [n, 2] (lon, lat), with equal scales in both directions."""
    low, high = points.min(axis=0), points.max(axis=0)
    shrink = np.cos(np.radians((low[1] + high[1]) / 2))  # of a degree of longitude
    half = (0.5 + margin) * max((high[0] - low[0]) * shrink, high[1] - low[1], 1e-4)
    middle = (low + high) / 2
    axes.set_aspect(1 / shrink)
    axes.set_xlim(middle[0] - half / shrink, middle[0] + half / shrink)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set(xticks=[], yticks=[])
