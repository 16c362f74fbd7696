"""Pictures of runs."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.config import display_path
from utils.errors import UserError
from utils.road_network import RoadNetwork

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

Curves = dict[str, tuple[list[int], list[float]]]  # tag -> steps, values


def read_scalars(folder: Path) -> Curves:
    """All scalars of a TensorBoard run.

    Raises:
        UserError: there are none.
    """
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    if not tags:
        raise UserError(f"{display_path(folder)}: no TensorBoard events; train this run first")
    return {tag: ([e.step for e in events.Scalars(tag)], [e.value for e in events.Scalars(tag)]) for tag in tags}


def plot_run(curves: Curves, network: RoadNetwork, real: list[int], made: list[int], title: str) -> bytes:
    """Validation curves, and a real and a generated trip (road ids) on the map, as a PNG file."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), dpi=90, layout="constrained")
    figure.suptitle(title)
    _draw_curves(left, curves)
    _draw_trips(right, network, real, made)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return file.getvalue()


def _draw_curves(axes: Axes, curves: Curves) -> None:
    axes.plot(*curves["val_next_step_acc"], "o-", color="tab:blue", label="next-road accuracy")
    axes.set(xlabel="epoch", ylabel="validation accuracy")
    axes.grid(alpha=0.3)
    time_axes = axes.twinx()
    time_axes.plot(*curves["val_time_pred_mape"], "s--", color="tab:orange", label="time MAPE")
    time_axes.set_ylabel("validation time MAPE")
    handles = axes.get_lines() + time_axes.get_lines()
    axes.legend(handles, [line.get_label() for line in handles], loc="center right")


def _draw_trips(axes: Axes, network: RoadNetwork, real: list[int], made: list[int]) -> None:
    # A relation leads from the end of a road to the end of the next: together they are the map.
    owner = np.repeat(np.arange(network.num_roads), np.diff(network.reach_ptr))
    segments = np.stack([network.end[owner], network.end[network.reach_road]], axis=1)
    axes.add_collection(LineCollection(segments, colors="0.8", linewidths=0.6))
    axes.plot(*network.end[real].T, color="tab:green", linewidth=5, alpha=0.5, label=f"real ({len(real)} roads)")
    axes.plot(*network.end[made].T, color="tab:red", linewidth=1.5, label=f"generated ({len(made)} roads)")
    axes.plot(*network.end[real[0]], "ko", markersize=6)
    axes.plot(*network.end[real[-1]], "k*", markersize=12)
    axes.set(title="one test trip, from dot to star", xticks=[], yticks=[])
    axes.set_aspect(1 / np.cos(np.radians(network.center[:, 1].mean())))
    axes.legend(loc="best", fontsize=8)
