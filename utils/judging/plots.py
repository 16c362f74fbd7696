"""Pictures of how generated trips differ from real ones, and two models from each other."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from utils.files.pictures import png_of
from utils.judging.distributions import Reference
from utils.judging.judge import Judge, Judgement
from utils.judging.paired import Comparison, Difference
from utils.judging.report import format_p

Floats = NDArray[np.float64]

PANELS = ("distance", "radius", "duration", "trip_duration")
REAL, MADE, BAND = "0.15", "tab:red", "0.84"
BINS = 24  # about so many are drawn
MOST = 0.995  # share of the values that a panel shows


def plot_distributions(judge: Judge, judgements: Sequence[Judgement], title: str) -> bytes:
    """Length, radius, time per road and duration of real and generated trips, and the band of the noise floor.

    Returns:
        A PNG file with a row for each file of trips.
    """
    rows = len(judgements)
    page = plt.figure(figsize=(15, 1.1 + 2.9 * rows), dpi=100, layout="constrained")
    page.suptitle(title, fontsize=12)
    panels = page.subplots(rows, len(PANELS), squeeze=False, sharex="col", sharey="col")
    for column, key in zip(panels.T, PANELS, strict=True):
        borders = _borders(judge.references[key], judgements)
        for axes, judgement in zip(column, judgements, strict=True):
            _draw_distribution(axes, judge.references[key], judgement, borders, judge.seed)
        quantity = judge.references[key].quantity
        column[0].set_ylim(bottom=0)  # last: it ends the scaling to what is drawn
        column[-1].set_xlabel(f"{quantity.label}, {quantity.unit}")
    for row, judgement in zip(panels, judgements, strict=True):
        row[0].set_ylabel(f"{judgement.label}\n% per bin")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return png_of(page)


def _borders(reference: Reference, judgements: Sequence[Judgement]) -> NDArray[np.int64]:
    """Places of the edges that are drawn among the metric's own: so the picture shows what the number is made of."""
    made = [reference.quantity.measure(judgement.trips).value for judgement in judgements]
    last = len(reference.edges) - 2  # the one before infinity
    # A file with very long trips does not squeeze the real ones into a corner.
    end = min(max(np.quantile(v, MOST) for v in (reference.real.value, *made) if len(v)), reference.edges[last])
    shown = int(np.clip(np.searchsorted(reference.edges[: last + 1], end), 1, last))
    return np.minimum(np.arange(0, shown + (group := max(1, round(shown / BINS))), group), last)


def _draw_distribution(
    axes: Axes, reference: Reference, judgement: Judgement, borders: NDArray[np.int64], seed: int
) -> None:
    edges = reference.edges[borders]
    made = reference.quantity.measure(judgement.trips)
    [real_places, made_places], width = reference.places(reference.real, made)

    def shares(counts: NDArray) -> Floats:
        """Per cent in each bin that is drawn, of counts [..., K] in the metric's own."""
        summed = np.diff(
            np.concatenate([np.zeros_like(counts[..., :1]), counts.cumsum(axis=-1)], axis=-1)[..., borders]
        )
        return 100 * summed / np.maximum(counts.sum(axis=-1, keepdims=True), 1)

    _, draws = reference.floor(len(judgement.trips), seed)
    low, high = np.quantile(shares(draws), [0.05, 0.95], axis=0)
    axes.stairs(high, edges, baseline=low, fill=True, color=BAND, label="noise floor: 90 % of draws from train.csv")
    axes.stairs(shares(np.bincount(real_places, minlength=width)), edges, color=REAL, linewidth=1.8, label="real trips")
    made_shares = shares(np.bincount(made_places, minlength=width))
    axes.stairs(made_shares, edges, color=MADE, linewidth=1.8, label="generated trips")
    axes.set_xlim(0, edges[-1])
    axes.set_title(_divergence(reference, judgement) + _beyond(made_shares), fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)


def _divergence(reference: Reference, judgement: Judgement) -> str:
    """`JSD 0.027 (noise floor 0.049 to 0.071)`."""
    key = f"{reference.quantity.key}_jsd"
    figures = [*judgement.published.figures, *judgement.distributions]
    figure = next(figure for figure in figures if figure.key == key)
    floor = f" (noise floor {figure.floor.low:.3f} to {figure.floor.high:.3f})" if figure.floor else ""
    return f"JSD {figure.value:.3f}{floor}"


def _beyond(shares: Floats) -> str:
    rest = 100 - shares.sum()
    return f"; {rest:.0f} % beyond" if rest >= 1 else ""


def plot_comparison(comparison: Comparison) -> bytes:
    """The differences of two models with intervals, each metric on its own scale; to the right is better.

    Returns:
        A PNG file.
    """
    differences = comparison.differences
    page = plt.figure(figsize=(9, 1.4 + 0.95 * len(differences)), dpi=110, layout="constrained")
    seeds = differences[0].seeds
    counted = f"{differences[0].n:,} queries" + (f", {seeds} seeds" if seeds > 1 else "")
    lines = "dot and bar: mean difference, 95 % interval" + ("; ticks: single seeds" if seeds > 1 else "")
    title = f"{comparison.second} minus {comparison.first}, {counted}; to the right {comparison.second} is better"
    page.suptitle(f"{title}\n{lines}", fontsize=11)
    for axes, difference in zip(np.atleast_1d(page.subplots(len(differences), 1)), differences, strict=True):
        _draw_difference(axes, difference)
    return png_of(page)


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
    p = f"p {format_p(d.p)}" + (f" (queries)\np {format_p(d.p_seeds)} (seeds)" if d.seeds > 1 else "")
    axes.annotate(p, (1.01, 0.5), xycoords="axes fraction", va="center", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
