"""Pictures of a study: history, curves, importance, parallel coordinates, slices."""

from __future__ import annotations

import io
import math
import os
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from utils.files.atomic import atomic_write
from utils.search.report import column_names
from utils.search.study import SharedStudy, best_trial, best_value
from utils.search.worker import RunFigures, short

FINISHED, PRUNED, FAILED = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
BLUE, GREY, RED, GREEN = "#2166ac", "#9a9a9a", "#b2182b", "#1b7837"
SHADES = "viridis_r"  # from pale (low) to dark (high)
MIN_FOR_IMPORTANCE = 4
TITLE_PT = 11
TITLE_LETTERS_PER_INCH = 10  # of a title in that size, at least
CHOICE_LETTERS = 14  # of a choice beside an axis


@dataclass(frozen=True)
class StudyView:
    """What the pictures show."""

    title: str
    trials: list[FrozenTrial]
    baseline: RunFigures | None
    names: dict[str, str]  # key -> short name
    distributions: dict[str, optuna.distributions.BaseDistribution]
    importances: dict[str, float]  # by key; empty: too few trials

    @property
    def valued(self) -> list[FrozenTrial]:
        """Trials that have ended with a value."""
        return [t for t in self.trials if t.state in (FINISHED, PRUNED) and best_value(t) is not None]

    def of(self, state: TrialState) -> list[FrozenTrial]:
        """Those of them in one state."""
        return [trial for trial in self.valued if trial.state == state]

    @property
    def limits(self) -> tuple[float, float]:
        """Of an accuracy axis: finished trials set it, as pruned ones are far below after their few epochs."""
        values = [t.value for t in self.of(FINISHED)] or [best_value(t) for t in self.valued]
        values += [self.baseline.val_acc] if self.baseline else []
        low, high = min(values, default=0.0), max(values, default=1.0)
        margin = 0.08 * (high - low) or 0.005
        return low - 2 * margin, high + margin

    def shown(self, trials: list[FrozenTrial]) -> list[float]:
        """Values of trials on that axis; those below it lie on its edge."""
        low = self.limits[0]
        return [max(best_value(trial), low) for trial in trials]


def draw_study(study: SharedStudy) -> None:
    """Write the five pictures into the study's folder."""
    trials, baseline = study.trials(), study.noted("baseline")
    view = StudyView(
        f"{study.dataset}, study '{study.name}'",
        trials,
        RunFigures(**baseline) if baseline else None,
        column_names(list(study.space.distributions)),
        study.space.distributions,
        importances(study.study),
    )
    for name, draw in PICTURES.items():
        picture = draw(view)
        atomic_write(study.folder / f"{name}.png", lambda file, picture=picture: file.write(picture))


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the difference between good and other trials each key explains (PED-ANOVA), largest first."""
    finished = study.get_trials(deepcopy=False, states=(FINISHED,))
    if len(finished) < MIN_FOR_IMPORTANCE or len({trial.value for trial in finished}) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):
        return {}  # keys whose values were always the same
    return found if all(math.isfinite(value) for value in found.values()) else {}


def history(view: StudyView) -> bytes:
    """The value of each trial, the best so far, and the baseline."""
    figure, axes = _figure(view, "validation accuracy of each trial")
    finished, pruned = view.of(FINISHED), view.of(PRUNED)
    failed = [t for t in view.trials if t.state == FAILED]
    if finished:
        best = np.maximum.accumulate([t.value for t in finished])
        numbers = [t.number for t in finished]
        last = max(t.number for t in view.trials)
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=BLUE, linewidth=1.2, label="best so far")
        axes.plot(numbers, [t.value for t in finished], "o", color=BLUE, label="finished")
    edge = {"clip_on": False, "linestyle": "none", "markersize": 7}
    if pruned:
        numbers, values = [t.number for t in pruned], view.shown(pruned)
        axes.plot(numbers, values, marker="x", color=GREY, label="pruned (at the edge: below)", **edge)
    _baseline_line(axes, view)
    if failed:
        numbers = [t.number for t in failed]
        axes.plot(numbers, [view.limits[0]] * len(failed), marker="v", color=RED, label="failed", **edge)
    axes.set_ylim(view.limits)
    axes.set(xlabel="trial", ylabel="validation accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _png(figure, axes, bool(view.trials or view.baseline))


def intermediate(view: StudyView) -> bytes:
    """The curve of each trial; pruned ones end in a cross."""
    figure, axes = _figure(view, "validation accuracy by epoch")
    best = best_trial(view.trials)
    styles: dict[str, dict[str, Any]] = {
        "pruned": {"color": GREY, "alpha": 0.8, "linewidth": 1.0},
        "failed": {"color": RED, "alpha": 0.8, "linewidth": 1.0},
        "running": {"color": GREEN, "alpha": 0.8, "linewidth": 1.0, "linestyle": ":"},
        "finished": {"color": BLUE, "alpha": 0.35, "linewidth": 1.0},
        "best": {"color": BLUE, "linewidth": 2.2},
    }
    kinds = {PRUNED: "pruned", FAILED: "failed", FINISHED: "finished"}
    seen = set()
    for trial in view.trials:
        if not trial.intermediate_values:
            continue
        kind = "best" if best and trial.number == best.number else kinds.get(trial.state, "running")
        epochs = [step + 1 for step in sorted(trial.intermediate_values)]
        values = [trial.intermediate_values[epoch - 1] for epoch in epochs]
        text = f"best: trial {trial.number}" if kind == "best" else kind
        label = text if kind not in seen else None
        seen.add(kind)
        # One epoch is no line: a small dot shows where a trial began.
        axes.plot(
            epochs, values, label=label, zorder=3 if kind == "best" else 2, marker=".", markersize=3, **styles[kind]
        )
        if kind in ("pruned", "failed"):
            axes.plot(epochs[-1], values[-1], "x", color=styles[kind]["color"], markersize=6)
    if view.baseline:
        curve = view.baseline.curve
        axes.plot(range(1, len(curve) + 1), curve, "--", color="black", linewidth=1.4, label="baseline (no teacher)")
        seen.add("baseline")
    axes.set(xlabel="epoch", ylabel="validation accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _png(figure, axes, bool(seen))


def importance(view: StudyView) -> bytes:
    """A bar for each key."""
    finished = len(view.of(FINISHED))
    figure, axes = _figure(view, f"what the accuracy depends on (PED-ANOVA of {finished} finished trials)")
    shares = view.importances
    keys = list(shares)[::-1]
    axes.barh([view.names.get(key, key) for key in keys], [shares[key] for key in keys], color=BLUE, height=0.6)
    for place, key in enumerate(keys):
        axes.text(shares[key], place, f" {shares[key]:.2f}", va="center")
    axes.set(xlabel="share of the explained differences", xlim=(0, max([1.0, *shares.values()]) * 1.08))
    axes.grid(axis="y", visible=False)
    message = f"needs {MIN_FOR_IMPORTANCE} finished trials or more, of different accuracy"
    return _png(figure, axes, bool(shares), message, legend=False)


def parallel_coordinates(view: StudyView) -> bytes:
    """A line for each finished trial through its values to its accuracy, and a grey one for each pruned one."""
    width = 2.2 + 1.9 * len(view.distributions)
    figure, axes = _figure(view, "values of finished trials (grey: pruned)", width)
    finished = sorted(view.of(FINISHED), key=best_value)
    scales = [_Scale.of(key, view) for key in view.distributions]
    for trial in view.of(PRUNED):
        heights = [scale.height(trial.params.get(scale.key)) for scale in scales]
        axes.plot(range(len(heights)), heights, color=GREY, linestyle="--", linewidth=0.8, alpha=0.7)
    norm = Normalize(*_limits([t.value for t in finished]))
    for trial in finished:
        share = float(norm(trial.value))
        heights = [*(scale.height(trial.params.get(scale.key)) for scale in scales), share]
        axes.plot(range(len(heights)), heights, color=_shade(share), linewidth=1.8)
    for place, scale in enumerate(scales):
        _draw_scale(axes, place, [(scale.height(value), text) for value, text in scale.labelled_marks()])
    ticks = [tick for tick in _ticks(norm.vmin, norm.vmax) if finished]
    _draw_scale(axes, len(scales), [(float(norm(tick)), f"{tick:.4g}") for tick in ticks])
    names = [*(scale.title for scale in scales), "accuracy"]
    axes.set_xticks(range(len(names)), names)
    axes.set(xlim=(-0.3, len(names) - 0.55), ylim=(-0.05, 1.05), yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="x", length=0)
    return _png(figure, axes, bool(view.valued), legend=False)


def slices(view: StudyView) -> bytes:
    """Accuracy over each key."""
    keys = list(view.distributions)
    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(1.2 + 3.1 * columns, 0.9 + 2.8 * rows), dpi=110, layout="constrained")
    title = f"{view.title}: accuracy by value (dashed: baseline; crosses: pruned, at the edge: below)"
    figure.suptitle(_wrapped(title, figure), fontsize=TITLE_PT)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    trials = view.valued
    numbers = [t.number for t in trials]
    norm = Normalize(0, max([1, *numbers]))
    for axes, key in zip(grid, keys, strict=False):
        scale = _Scale.of(key, view)
        for state, marker, size in ((PRUNED, "x", 24), (FINISHED, "o", 30)):
            own = [t for t in view.of(state) if key in t.params]
            places = [scale.place(t.params[key]) for t in own]
            colors = [_shade(norm(t.number)) for t in own]
            if own:
                axes.scatter(places, view.shown(own), c=colors, marker=marker, s=size, linewidths=1.2, clip_on=False)
        scale.set_axis(axes)
        _baseline_line(axes, view)
        axes.set(xlabel=scale.title, ylim=view.limits)
        _plain(axes)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    for row in range(rows):
        grid[row * columns].set_ylabel("validation accuracy")
    if trials:
        bar = figure.colorbar(ScalarMappable(norm, SHADES), ax=list(grid), label="trial (later is darker)", pad=0.01)
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        grid[0].text(0.5, 0.5, "no trial has ended with a value yet", ha="center", transform=grid[0].transAxes)
    return _bytes(figure)


PICTURES: dict[str, Callable[[StudyView], bytes]] = {
    "history": history,
    "intermediate": intermediate,
    "importance": importance,
    "parallel_coordinates": parallel_coordinates,
    "slices": slices,
}


@dataclass(frozen=True)
class _Scale:
    """One key's axis: linear, logarithmic, or one place for each choice."""

    key: str
    title: str
    low: float
    high: float
    log: bool
    choices: tuple[Any, ...] = ()

    @classmethod
    def of(cls, key: str, view: StudyView) -> _Scale:
        found = view.distributions[key]
        if isinstance(found, CategoricalDistribution):
            return cls(key, view.names[key], 0, len(found.choices) - 1, False, tuple(found.choices))
        return cls(key, view.names[key] + (" (log)" if found.log else ""), found.low, found.high, found.log)

    def place(self, value: Any) -> float:
        """Where a value lies on the axis, before the logarithm."""
        return self.choices.index(value) if self.choices else value

    def height(self, value: Any) -> float:
        """Where a value lies from 0 to 1; NaN, which draws nothing, for a key that a trial lacks."""
        if value is None and None not in self.choices:
            return math.nan
        low, high, place = self.low, self.high, self.place(value)
        if self.log:
            low, high, place = math.log(low), math.log(high), math.log(place)
        return 0.5 if high == low else (place - low) / (high - low)

    def marks(self) -> list[Any]:
        """Values to write beside the axis."""
        if self.choices:
            return list(self.choices)
        if self.high == self.low:
            return [self.low]
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [factor * 10.0**decade for decade in decades for factor in (1, 3)]
            if isinstance(self.low, int):
                marks = [int(mark) for mark in marks if mark >= 1]
            inner = [mark for mark in marks if self.low * 1.05 < mark < self.high / 1.05]
            return [self.low, *(inner if len(inner) < 9 else inner[::2]), self.high]
        whole = isinstance(self.low, int)
        return [int(mark) if whole else mark for mark in _ticks(self.low, self.high, whole)]

    def labelled_marks(self) -> list[tuple[Any, str]]:
        """The same with their texts."""
        if self.choices:
            return list(zip(self.choices, _choice_texts(self.choices), strict=True))
        return [(mark, short(mark)) for mark in self.marks()]

    def set_axis(self, axes: Axes) -> None:
        """Scale, limits and marks of an x axis."""
        if self.choices:
            texts = _choice_texts(self.choices)
            axes.set_xticks(range(len(self.choices)), texts)
            if sum(map(len, texts)) > CHOICE_LETTERS:
                axes.tick_params(axis="x", labelrotation=20)
            axes.set_xlim(-0.5, len(self.choices) - 0.5)
        elif self.log:
            axes.set_xscale("log")
            axes.set_xlim(self.low / 1.15, self.high * 1.15)
            marks = self.marks()
            if len(marks) > 4:  # few fit below a narrow picture
                marks = [marks[0], *marks[2:-2:2], marks[-1]]
            axes.set_xticks(marks, [short(mark) for mark in marks])
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            margin = 0.05 * (self.high - self.low) or 0.5
            axes.set_xlim(self.low - margin, self.high + margin)
            axes.set_xticks(_ticks(self.low, self.high, isinstance(self.low, int)))


def _figure(view: StudyView, what: str, width: float = 8.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_title(_wrapped(f"{view.title}: {what}", figure), fontsize=TITLE_PT)
    _plain(axes)
    return figure, axes


def _wrapped(text: str, figure: Figure) -> str:
    """A title in as many lines as it needs, and without a meaning to Matplotlib."""
    letters = int(figure.get_size_inches()[0] * TITLE_LETTERS_PER_INCH)
    return "\n".join(_literal(line) for line in textwrap.wrap(text, letters))


def _literal(text: str) -> str:
    return text.replace("$", r"\$")


def _choice_texts(choices: Sequence[Any]) -> list[str]:
    """Short texts of choices; of long ones, such as paths, without what all have in common."""
    texts = [str(choice) or '""' for choice in choices]
    if len(texts) > 1 and max(map(len, texts)) > CHOICE_LETTERS:
        # letter by letter, not folder by folder as commonpath would
        common = len(os.path.commonprefix(texts))  # noqa: RUF071
        texts = [text if common < 2 else f"…{text[common:]}" for text in texts]
    short_texts = [text if len(text) <= CHOICE_LETTERS else f"{text[: CHOICE_LETTERS - 1]}…" for text in texts]
    if len(set(short_texts)) < len(texts):
        short_texts = [f"{place}: {text[: CHOICE_LETTERS - 4]}…" for place, text in enumerate(texts, start=1)]
    return [_literal(text) for text in short_texts]


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(axis="y", useOffset=False)


def _png(
    figure: Figure, axes: Axes, has_content: bool, message: str = "nothing to show yet", legend: bool = True
) -> bytes:
    """Finish a picture; `message` stands in one without content."""
    if not has_content:
        title = axes.get_title()
        axes.clear()
        axes.set_title(title, fontsize=TITLE_PT)
        axes.set_axis_off()
        axes.text(0.5, 0.5, message, ha="center", va="center", transform=axes.transAxes, color=GREY)
    elif legend and axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=9, framealpha=0.9)
    return _bytes(figure)


def _bytes(figure: Figure) -> bytes:
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _baseline_line(axes: Axes, view: StudyView) -> None:
    if view.baseline:
        axes.axhline(
            view.baseline.val_acc, color="black", linestyle="--", linewidth=1.2, zorder=1, label="baseline (no teacher)"
        )


def _draw_scale(axes: Axes, place: int, marks: list[tuple[float, str]]) -> None:
    axes.axvline(place, ymin=0.045, ymax=0.955, color="black", linewidth=0.8)
    for height, text in marks:
        axes.plot([place - 0.015, place + 0.015], [height, height], color="black", linewidth=0.8)
        label = axes.text(place + 0.03, height, text, va="center", fontsize=8)
        label.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8})


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from low to high."""
    ticks = MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def _limits(values: list[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.005, high + 0.005)


def _shade(share: float) -> Any:
    return colormaps[SHADES](float(share))
