"""Generated trips on the map."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from utils.data.map_axes import zoom
from utils.files.pictures import png_of

Lines = list[NDArray[np.float64]]  # the polyline of each road, [n, 2] (lon, lat)
REAL, GENERATED, BACKGROUND = "tab:green", "tab:red", "0.85"
NUMBER = 6  # of trips that are drawn


@dataclass(frozen=True)
class TripPair:
    """A generated trip and, where there is one, the real trip that its query is from."""

    made: Sequence[int]  # road ids
    real: Sequence[int] | None
    destination: int
    title: str

    @property
    def arrives(self) -> bool:
        return self.made[-1] == self.destination


def draw_trip(axes: Axes, lines: Lines, trip: TripPair) -> None:
    """A real and a generated trip and their surroundings."""
    axes.add_collection(LineCollection(lines, colors=BACKGROUND, linewidths=0.6))
    end = "arrives" if trip.arrives else "does not arrive"
    drawn = [(trip.made, GENERATED, 1.5, 1.0, f"generated, {len(trip.made)} roads, {end}")]
    if trip.real is not None:
        drawn.insert(0, (trip.real, REAL, 5.0, 0.45, f"real, {len(trip.real)} roads"))
    for roads, color, width, alpha, label in drawn:
        polylines = [lines[road] for road in roads]
        axes.add_collection(LineCollection(polylines, colors=color, linewidths=width, alpha=alpha, label=label))
    axes.plot(*lines[trip.made[0]][0], "ko", markersize=6, label="origin")
    axes.plot(*lines[trip.destination][-1], "k*", markersize=12, label="destination")
    axes.set_title(trip.title, fontsize=10)
    shown = [lines[road] for roads, *_ in drawn for road in roads]
    zoom(axes, np.concatenate([*shown, lines[trip.destination]]))


def trip_legend(with_real: bool) -> list[Line2D]:
    """What is what in `draw_trip`."""
    real = [Line2D([], [], color=REAL, linewidth=5, alpha=0.45, label="real trip")] if with_real else []
    return [
        *real,
        Line2D([], [], color=GENERATED, linewidth=1.5, label="generated trip"),
        Line2D([], [], color="k", marker="o", linestyle="", markersize=6, label="origin"),
        Line2D([], [], color="k", marker="*", linestyle="", markersize=11, label="destination"),
    ]


def choose_pairs(pairs: Sequence[TripPair]) -> list[TripPair]:
    """Six trips from short to long: those at the quantiles 1/12, 3/12, ... 11/12 of the number of roads."""
    ordered = sorted(pairs, key=lambda pair: len(pair.made if pair.real is None else pair.real))
    places = [int((i + 0.5) / NUMBER * len(ordered)) for i in range(NUMBER)]
    return [ordered[place] for place in dict.fromkeys(places)]


def road_usage(trips: Iterable[Sequence[int]], num_roads: int) -> NDArray[np.int64]:
    """How many trips take each road, [N]."""
    usage = np.zeros(num_roads, dtype=np.int64)
    for roads in trips:
        usage[np.unique(np.asarray(roads))] += 1
    return usage


def plot_trips(
    lines: Lines,
    pairs: Sequence[TripPair],
    made_usage: NDArray[np.int64],
    real_usage: NDArray[np.int64] | None,
    title: str,
) -> bytes:
    """Some trips, and how often each road is taken, as a PNG file.

    Args:
        lines: of all roads.
        pairs: what `choose_pairs` returned.
        made_usage: [N], of all generated trips.
        real_usage: [N], of the real trips of the same queries, if there are any.
        title: of the whole picture.
    """
    figure = plt.figure(figsize=(14.5, 8), dpi=100, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    for axes, pair in zip(left.subplots(2, 3).flat, pairs, strict=False):
        draw_trip(axes, lines, pair)
    for axes in left.axes[len(pairs) :]:
        axes.set_axis_off()
    left.legend(handles=trip_legend(real_usage is not None), loc="outside lower center", ncols=4, frameon=False)
    usages = [("real", real_usage)] if real_usage is not None else []
    usages.append(("generated", made_usage))
    norm = LogNorm(1, max(2, *(usage.max() for _, usage in usages)))
    panels = np.atleast_1d(right.subplots(len(usages), 1))
    for axes, (name, usage) in zip(panels, usages, strict=True):
        _draw_usage(axes, lines, usage, norm)
        axes.set_title(f"{name}: {np.count_nonzero(usage):,} of {len(lines):,} roads are taken", fontsize=9)
    colors = plt.cm.ScalarMappable(norm, "viridis_r")
    right.colorbar(colors, ax=list(panels), label="trips that take the road (grey: none)", shrink=0.7)
    return png_of(figure)


def _draw_usage(axes: Axes, lines: Lines, usage: NDArray[np.int64], norm: LogNorm) -> None:
    axes.add_collection(LineCollection(lines, colors=BACKGROUND, linewidths=0.5))
    taken = np.flatnonzero(usage)
    taken = taken[np.argsort(usage[taken], kind="stable")]  # the busiest on top
    busy = LineCollection([lines[road] for road in taken], cmap="viridis_r", norm=norm)
    busy.set_array(usage[taken])
    busy.set_linewidths(0.8 + 2.2 * norm(usage[taken]))
    axes.add_collection(busy)
    zoom(axes, np.concatenate([lines[road] for road in taken]) if len(taken) else np.concatenate(lines), margin=0.03)
