"""What an import has done: numbers, and a page of pictures that shows whether the matching went well."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from utils.city_import.drives import BIN_M, Drive
from utils.data.map_axes import zoom
from utils.files.pictures import png_of

BACKGROUND, COLOR, FIX = "0.82", "tab:blue", "tab:red"
EXAMPLES = 4

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Lines = list[Floats]  # of the roads, [n, 2] (lon, lat)


@dataclass(frozen=True)
class ReportData:
    """What the page shows."""

    title: str
    lines: Lines
    drives: Sequence[Drive]
    traces: int  # in the file
    matched: int  # of them, at least one trip is left
    distances: Ints  # [BINS], see `Part`
    noise_m: float | None  # None: the traces were matched before
    left_out: dict[str, int]  # by reason
    fixes: dict[int, Floats]  # of the traces that are drawn, by their number, [n, 2] (lon, lat)


def draw_report(data: ReportData) -> bytes:
    """The page, as a PNG file."""
    figure = plt.figure(figsize=(16, 12), dpi=100, layout="constrained")
    figure.suptitle(data.title, fontsize=14)
    grid = figure.add_gridspec(3, 4, height_ratios=(1, 1, 1))
    _draw_map(figure, figure.add_subplot(grid[:2, :2]), data)
    _draw_distances(figure.add_subplot(grid[0, 2]), data)
    _draw_lengths(figure.add_subplot(grid[0, 3]), data)
    _draw_hours(figure.add_subplot(grid[1, 2]), data)
    _draw_left_out(figure.add_subplot(grid[1, 3]), data)
    for place, drive in enumerate(examples(data.drives)):
        _draw_example(figure.add_subplot(grid[2, place]), data, drive)
    return png_of(figure)


def examples(drives: Sequence[Drive]) -> list[Drive]:
    """Some trips from short to long: those at the quantiles 1/8, 3/8, ... of the number of roads."""
    ordered = sorted(range(len(drives)), key=lambda i: (len(drives[i].roads), i))
    places = [int((i + 0.5) / EXAMPLES * len(ordered)) for i in range(EXAMPLES)]
    return [drives[ordered[place]] for place in dict.fromkeys(places)]


def median_distance_m(distances: Ints) -> float:
    """The median of a histogram of distances, in metres; 0 without any."""
    total = distances.sum()
    return float((np.searchsorted(np.cumsum(distances), total / 2) + 0.5) * BIN_M) if total else 0.0


def _draw_map(figure: Figure, axes: Axes, data: ReportData) -> None:
    usage = np.zeros(len(data.lines), dtype=np.int64)
    for drive in data.drives:
        usage[np.unique(drive.roads)] += 1
    axes.add_collection(LineCollection(data.lines, colors=BACKGROUND, linewidths=0.6))
    taken = np.flatnonzero(usage)
    taken = taken[np.argsort(usage[taken], kind="stable")]  # the busiest on top
    norm = LogNorm(1, max(2, usage.max()))
    busy = LineCollection([data.lines[road] for road in taken], cmap="viridis_r", norm=norm)
    busy.set_array(usage[taken])
    busy.set_linewidths(0.6 + 2.0 * norm(usage[taken]))
    axes.add_collection(busy)
    figure.colorbar(busy, ax=axes, label="trips that take the road (grey: none)", shrink=0.7, location="left")
    zoom(axes, np.concatenate(data.lines), 0.02)
    axes.set_title(f"{len(taken):,} of {len(data.lines):,} roads are taken ({len(taken) / len(data.lines):.0%})")


def _draw_distances(axes: Axes, data: ReportData) -> None:
    axes.set_title("distance of fixes to their roads")
    if data.noise_m is None:
        axes.text(0.5, 0.5, "matched before:\nno fixes in the file", ha="center", va="center")
        axes.set_axis_off()
        return
    total = max(1, data.distances.sum())
    shown = int(np.searchsorted(np.cumsum(data.distances), 0.995 * total)) + 2
    edges = BIN_M * np.arange(min(shown, len(data.distances)))
    axes.bar(edges, data.distances[: len(edges)] / total, width=BIN_M, align="edge", color=COLOR)
    median = median_distance_m(data.distances)
    axes.axvline(median, color="k", linestyle="--", label=f"median {median:.0f} m")
    axes.plot([], [], " ", label=f"noise {data.noise_m:g} m")
    axes.set(xlabel="m", ylabel="share of fixes")
    axes.legend(frameon=False)


def _draw_lengths(axes: Axes, data: ReportData) -> None:
    roads = np.array([len(drive.roads) for drive in data.drives])
    longest = int(np.quantile(roads, 0.995)) + 1
    axes.hist(roads, bins=np.arange(0, longest + 2, max(1, longest // 40)) - 0.5, color=COLOR)
    axes.axvline(np.median(roads), color="k", linestyle="--", label=f"median {np.median(roads):.0f}")
    axes.set(xlabel="roads", ylabel="trips", title="trips by length")
    axes.legend(frameon=False)


def _draw_hours(axes: Axes, data: ReportData) -> None:
    hours = np.array([drive.time_s[0] // 3600 % 24 for drive in data.drives])
    axes.bar(np.arange(24), np.bincount(hours, minlength=24), width=0.9, color=COLOR)
    axes.set(xlabel="hour of departure, by the clock on the wall", ylabel="trips", title="trips by hour")
    axes.set_xticks(range(0, 24, 3))


def _draw_left_out(axes: Axes, data: ReportData) -> None:
    share = data.matched / data.traces
    axes.set_title(f"matched: {data.matched:,} of {data.traces:,} traces ({share:.1%})", fontsize=10)
    rows = sorted(data.left_out.items(), key=lambda item: item[1])[-10:]
    axes.barh(range(len(rows)), [number for _, number in rows], color="tab:orange")
    for place, (reason, number) in enumerate(rows):
        axes.text(0.02, place, f"{reason}: {number:,}", va="center", fontsize=9, transform=axes.get_yaxis_transform())
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 8 if len(rows) < 8 else -0.6, len(rows) - 0.4)
    axes.set_xlabel("left out or cut, by reason" if rows else "nothing was left out")


def _draw_example(axes: Axes, data: ReportData, drive: Drive) -> None:
    path = [data.lines[road] for road in drive.roads]
    axes.add_collection(LineCollection(data.lines, colors=BACKGROUND, linewidths=0.6))
    axes.add_collection(LineCollection(path, colors=COLOR, linewidths=3, alpha=0.6))
    shown = np.concatenate(path)
    fixes = data.fixes.get(drive.source, np.empty((0, 2)))
    axes.plot(*fixes.T, ".", color=FIX, markersize=4)
    axes.plot(*shown[0], "k>", markersize=7)
    axes.plot(*shown[-1], "ks", markersize=6)
    zoom(axes, shown, 0.15)
    minutes = (drive.time_s[-1] - drive.time_s[0]) / 60
    dots = "red: fixes, " if len(fixes) else ""
    axes.set_title(f"{len(drive.roads)} roads, {minutes:.1f} minutes\n({dots}blue: roads; from ▶ to ■)", fontsize=9)
