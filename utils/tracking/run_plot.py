"""Pictures of runs."""

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.errors import UserError
from utils.files.pictures import png_of
from utils.generation.map_plot import TripPair, draw_trip

Curves = dict[str, tuple[list[int], list[float]]]  # tag -> steps, values
MEASURES = {"val_next_step_acc": "next-road accuracy", "val_time_pred_mape": "time MAPE of log1p(s)"}


def read_scalars(folder: Path) -> Curves:
    """All scalars of a TensorBoard run; none where there is no run."""
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: ([e.step for e in events.Scalars(tag)], [e.value for e in events.Scalars(tag)]) for tag in tags}


def read_validation_curves(folder: Path) -> Curves:
    """The validation curves of a run of HOSER.

    Raises:
        UserError: there are none.
    """
    curves = read_scalars(folder)
    if not set(MEASURES) <= set(curves):
        found = f"its curves are {', '.join(sorted(curves))}" if curves else "no TensorBoard events"
        others = ", ".join(_runs_beside(folder))[:300]
        raise UserError(
            f"{folder}: no validation of HOSER in it ({found}); "
            + (f"runs that have been trained: {others}" if others else "train it first")
        )
    return {tag: curves[tag] for tag in MEASURES}


def _runs_beside(folder: Path) -> list[str]:
    """Names of the runs of the same data set."""
    parts = folder.parts
    root = Path(*parts[:2])  # tensorboard_log/{dataset}
    return sorted({str(path.parent.relative_to(root)) for path in root.rglob("events.out.tfevents*")})


def plot_run(
    curves: Curves, points: NDArray[np.float64], offset: NDArray[np.int64], trip: TripPair, title: str
) -> bytes:
    """Validation curves, and a real and a generated trip on the map, as a PNG file.

    Args:
        curves: by tag.
        points: [P, 2], lon and lat of the polylines of all roads.
        offset: [N + 1], polyline i is points[offset[i] : offset[i + 1]].
        trip: what is drawn on the map.
        title: of the whole picture.
    """
    figure = plt.figure(figsize=(10.5, 5.4), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    figure.suptitle(title)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.2))
    upper = figure.add_subplot(grid[0, 0])
    lower = figure.add_subplot(grid[1, 0], sharex=upper)
    for axes, color, (tag, name) in zip((upper, lower), ("tab:blue", "tab:orange"), MEASURES.items(), strict=True):
        axes.plot(*curves[tag], "o-", color=color, markersize=4)
        # The names are titles: as labels of axes they would be as long as the axes are high.
        axes.set_title(f"{name}, validation", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    upper.tick_params(labelbottom=False)
    lower.set_xlabel("epoch")
    lines = np.split(points, offset[1:-1])
    world = figure.add_subplot(grid[:, 1])
    draw_trip(world, lines, trip)
    world.legend(loc="best", fontsize=8)
    return png_of(figure)
