"""Pictures of how generated trips differ from real ones, and two models from each other."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Page

from utils.judging.distributions import Reference
from utils.judging.judge import Judge, Judgement
from utils.judging.paired import Comparison, Difference

Floats = NDArray[np.float64]

PANELS = ("distance", "radius", "duration", "trip_duration")
REAL, BAND = "0.25", "0.8"
BINS = 30  # about so many are drawn
MOST = 0.995  # share of the values that a panel shows


def plot_distributions(judge: Judge, judgements: Sequence[Judgement], title: str) -> bytes:
    """Length, radius, time per road and duration: real trips, generated ones, and the band of the noise floor.

    Returns:
        A PNG file.
    """
    page = plt.figure(figsize=(12, 8), dpi=110, layout="constrained")
    page.suptitle(title, fontsize=11)
    for axes, key in zip(page.subplots(2, 2).flat, PANELS, strict=True):
        _draw_distribution(axes, judge.references[key], judgements, judge.seed)
    handles, labels = page.axes[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    return _png(page)


def _draw_distribution(axes: Axes, reference: Reference, judgements: Sequence[Judgement], seed: int) -> None:
    quantity, real = reference.quantity, reference.real.value
    made = [quantity.measure(judgement.trips).value for judgement in judgements]
    edges = reference.edges[:-1]
    end = max(np.quantile(values, MOST) for values in (real, *made) if len(values))
    shown = int(np.clip(np.searchsorted(edges, end), 1, len(edges) - 1))
    group = max(1, round(shown / BINS))
    # Whole groups of the metric's own bins, so that the picture shows what the number is made of.
    starts = np.arange(0, min(-(-shown // group) * group, len(edges) - 1), group)
    borders = edges[np.append(starts, min(starts[-1] + group, len(edges) - 1))]

    def shares(counts: Floats) -> Floats:
        """Per cent in each bin, of counts [..., 100]."""
        total = np.maximum(counts.sum(axis=-1, keepdims=True), 1)
        cut = np.minimum(starts[-1] + group, counts.shape[-1] - 1)
        return 100 * np.add.reduceat(counts[..., :cut], starts, axis=-1) / total

    _, draws = reference.floor(len(judgements[0].trips), seed)
    low, high = np.quantile(shares(draws), [0.05, 0.95], axis=0)
    axes.stairs(high, borders, baseline=low, fill=True, color=BAND, label="noise floor: 90 % of draws from train.csv")
    [real_places], width = reference.places(reference.real)
    axes.stairs(shares(np.bincount(real_places, minlength=width)), borders, color=REAL, linewidth=2.2, label="real")
    for i, (judgement, values) in enumerate(zip(judgements, made, strict=True)):
        places = np.searchsorted(reference.edges, values, side="right") - 1
        counts = np.bincount(places, minlength=width)
        axes.stairs(shares(counts), borders, color=f"C{i}", linewidth=1.4, label=judgement.label, baseline=None)
    axes.set_xlim(0, borders[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{quantity.label}, {quantity.unit}")
    what = "trips" if len(real) == len(reference.real_trips) else "steps"
    axes.set_ylabel(f"{what}, % per bin")
    axes.set_title(_divergences(reference, judgements), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _divergences(reference: Reference, judgements: Sequence[Judgement]) -> str:
    key = f"{reference.quantity.key}_jsd"
    found = []
    for judgement in judgements:
        figures = [*judgement.published.figures, *judgement.distributions]
        found.append(next(figure for figure in figures if figure.key == key))
    floor = found[0].floor
    values = ", ".join(f"{figure.value:.3f}" for figure in found)
    return f"JSD {values}" + (f"; noise floor {floor.low:.3f} to {floor.high:.3f}" if floor else "")


def plot_comparison(comparison: Comparison) -> bytes:
    """The differences of two models with intervals, each metric on its own scale; to the right is better.

    Returns:
        A PNG file.
    """
    differences = comparison.differences
    page = plt.figure(figsize=(9, 1.4 + 0.95 * len(differences)), dpi=110, layout="constrained")
    seeds = differences[0].seeds
    counted = f"{differences[0].n:,} queries" + (f", {seeds} seeds" if seeds > 1 else "")
    page.suptitle(
        f"{comparison.second} against {comparison.first}: {counted}; to the right, {comparison.second} is better"
    )
    for axes, difference in zip(np.atleast_1d(page.subplots(len(differences), 1)), differences, strict=True):
        _draw_difference(axes, difference)
    return _png(page)


def _draw_difference(axes: Axes, d: Difference) -> None:
    color = {1: "tab:green", -1: "tab:red", 0: "0.4"}[d.better]
    axes.axvline(0, color="0.7", linewidth=1)
    axes.plot([d.low, d.high], [0, 0], color=color, linewidth=3, solid_capstyle="butt")
    axes.plot(d.mean, 0, "o", color=color, markersize=8)
    if d.seeds > 1:
        axes.plot(d.by_seed, np.full(d.seeds, -0.55), "|", color="0.3", markersize=9)
    reach = 1.25 * max(map(abs, (d.low, d.high, *d.by_seed))) or 1.0
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-1, 1)
    if not d.metric.higher_is_better:
        axes.invert_xaxis()
    axes.set_yticks([])
    unit = f", {d.metric.unit}" if d.metric.unit else ""
    axes.set_ylabel(f"{d.metric.label}{unit}", rotation=0, ha="right", va="center")
    axes.annotate(f"p {d.p:.2g}", (1.01, 0.5), xycoords="axes fraction", va="center", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _png(page: Page) -> bytes:
    file = io.BytesIO()
    page.savefig(file, format="png")
    plt.close(page)
    return file.getvalue()
