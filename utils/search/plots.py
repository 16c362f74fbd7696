"""Pictures of a study: Optuna's own, and one of the trials' validation curves."""

import textwrap
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import optuna.visualization.matplotlib as optuna_plots
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from utils.files.atomic import atomic_write, remove
from utils.files.pictures import png_of
from utils.search.space import column_names
from utils.search.study import SharedStudy, best_trial
from utils.search.worker import RunMetrics

ACCURACY = "validation accuracy"
BLUE, GREY, RED, GREEN = "#2166ac", "#8c8c8c", "#b2182b", "#1b7837"
STYLES: dict[str, dict[str, Any]] = {
    "pruned": {"color": GREY, "linewidth": 1.0},
    "failed": {"color": RED, "linewidth": 1.0},
    "running": {"color": GREEN, "linewidth": 1.0, "linestyle": ":"},
    "finished": {"color": BLUE, "linewidth": 1.0, "alpha": 0.45},
    "best": {"color": BLUE, "linewidth": 2.4, "zorder": 3},
}
KINDS = {TrialState.PRUNED: "pruned", TrialState.FAIL: "failed", TrialState.COMPLETE: "finished"}
# Finished trials below which a picture shows nothing; the curves need one reported epoch.
MIN_FINISHED = {"history": 2, "importance": 4, "parallel_coordinates": 2, "slices": 2}


def draw_study(study: SharedStudy) -> list[str]:
    """Write the pictures into the study's folder; for those that cannot be drawn yet, what they need."""
    baseline = study.noted("baseline")
    pictures, missing = draw(
        study.trials(),
        study.space.distributions,
        RunMetrics(**baseline) if baseline else None,
        f"{study.dataset}, study '{study.name}'",
    )
    for name in (*MIN_FINISHED, "intermediate"):
        path = study.folder / f"{name}.png"
        if name in pictures:
            atomic_write(path, lambda file, name=name: file.write(pictures[name]))
        else:
            remove(path)  # of an earlier study
    return missing


def draw(
    trials: list[FrozenTrial],
    distributions: Mapping[str, optuna.distributions.BaseDistribution],
    baseline: RunMetrics | None,
    title: str,
) -> tuple[dict[str, bytes], list[str]]:
    """PNG files by name, and for each picture that cannot be drawn yet a text that says what it needs."""
    study = _with_short_names(trials, column_names(list(distributions)))
    finished = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    drawings: dict[str, Callable[[], Figure]] = {
        "history": lambda: _history(study, baseline, title),
        "importance": lambda: _importance(study, title, len(finished)),
        "parallel_coordinates": lambda: _parallel_coordinates(study, title),
        "slices": lambda: _slices(study, baseline, title),
    }
    pictures, missing = {}, []
    # Names of studies and data sets may hold "$", which must not start a formula.
    settings = {"figure.constrained_layout.use": True, "text.parse_math": False}
    with warnings.catch_warnings(), plt.rc_context(settings):
        warnings.simplefilter("ignore")  # Optuna's, of experimental functions and Matplotlib's tight layout
        if baseline or any(trial.intermediate_values for trial in trials):
            pictures["intermediate"] = png_of(_intermediate(trials, baseline, title), dpi=110)
        else:
            missing.append("intermediate.png (from the first epoch of a trial on)")
        for name, make in drawings.items():
            has_enough = len(finished) >= MIN_FINISHED[name]
            if name == "importance":
                has_enough &= len({trial.value for trial in finished}) > 1 and bool(_varied(finished))
            if has_enough:
                pictures[name] = png_of(make(), dpi=110)
            else:
                different = " of different accuracy" * (name == "importance")
                missing.append(f"{name}.png (from {MIN_FINISHED[name]} finished trials{different} on)")
    return pictures, missing


def _with_short_names(trials: list[FrozenTrial], names: Mapping[str, str]) -> optuna.Study:
    """A copy of the trials in memory whose parameters have the names that the pictures show."""
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                value=trial.value,
                params={names.get(key, key): value for key, value in trial.params.items()},
                distributions={names.get(key, key): value for key, value in trial.distributions.items()},
                intermediate_values=trial.intermediate_values,
            )
        )
    return study


def _varied(finished: list[FrozenTrial]) -> list[str]:
    """Parameters that had more than one value."""
    keys = dict.fromkeys(key for trial in finished for key in trial.params)
    return [key for key in keys if len({trial.params.get(key) for trial in finished}) > 1]


def _intermediate(trials: list[FrozenTrial], baseline: RunMetrics | None, title: str) -> Figure:
    """The curve of each trial; pruned and failed ones end in a cross."""
    figure, axes = plt.subplots(figsize=(8.5, 4.6))
    best, labelled = best_trial(trials), set()
    for trial in trials:
        if not trial.intermediate_values:
            continue
        kind = KINDS.get(trial.state, "running")
        label = {"pruned": "pruned (cross: its last epoch)", "failed": "failed (cross: its last epoch)"}.get(kind, kind)
        if best and trial.number == best.number:
            kind, label = "best", f"best: trial {trial.number}"
        epochs = [step + 1 for step in sorted(trial.intermediate_values)]
        values = [trial.intermediate_values[epoch - 1] for epoch in epochs]
        marks = {"marker": "x", "markersize": 6, "markevery": [-1]} if kind in ("pruned", "failed") else {"marker": "."}
        axes.plot(epochs, values, label=None if kind in labelled else label, **STYLES[kind], **marks)
        labelled.add(kind)
    if baseline:
        epochs = range(1, len(baseline.curve) + 1)
        axes.plot(epochs, baseline.curve, "--", color="black", linewidth=1.6, label="baseline (no teacher)")
    axes.set_title(_wrapped(f"{title}: {ACCURACY} after each epoch, all trials", figure))
    axes.set(xlabel="epoch", ylabel=ACCURACY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", framealpha=0.9)
    return figure


def _history(study: optuna.Study, baseline: RunMetrics | None, title: str) -> Figure:
    axes = optuna_plots.plot_optimization_history(study, target_name=ACCURACY)
    figure = _resized(axes, 8.5, 4.6)
    axes.collections[0].set_label("finished trial")
    axes.lines[0].set_label("best so far")
    _baseline_line(axes, baseline)
    axes.set_title(_wrapped(f"{title}: {ACCURACY} of finished trials", figure))
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")
    return figure


def _importance(study: optuna.Study, title: str, finished: int) -> Figure:
    axes = optuna_plots.plot_param_importances(study)
    figure = _resized(axes, 8.5, 1.8 + 0.5 * len(axes.get_yticks()))
    text = f"{title}: share of the differences in accuracy that each setting explains ({finished} finished trials)"
    axes.set_title("", loc="left")
    axes.set_title(_wrapped(text, figure))
    axes.set(xlabel="importance (PED-ANOVA)", ylabel="")
    axes.get_legend().remove()
    return figure


def _parallel_coordinates(study: optuna.Study, title: str) -> Figure:
    axes = optuna_plots.plot_parallel_coordinate(study, target_name=ACCURACY)
    figure = _resized(axes, max(8.5, 1.7 * len(axes.get_xticks())), 4.8)
    axes.set_title("")
    figure.suptitle(_wrapped(f"{title}: settings of finished trials (colour: {ACCURACY})", figure))
    axes.tick_params(axis="x", labelrotation=0)
    axes.collections[0].set_cmap("viridis_r")  # Optuna's own begins with white
    for each in figure.axes:
        each.grid(visible=False)
        if each.get_yscale() == "log":
            _label_decades(each.yaxis, *each.get_ylim())
        if isinstance(each.yaxis.get_major_formatter(), FixedFormatter):  # choices
            each.set_yticklabels([_in_lines(label.get_text()) for label in each.get_yticklabels()])
        for label in each.get_yticklabels():
            label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8})
    return figure


def _slices(study: optuna.Study, baseline: RunMetrics | None, title: str) -> Figure:
    grid = np.atleast_1d(optuna_plots.plot_slice(study, target_name=ACCURACY))
    figure = _resized(grid[0], max(8.5, 1.9 * len(grid)), 4.4)
    grid[0].set_title("")
    text = f"{title}: {ACCURACY} of finished trials by setting" + " (dashed: baseline)" * bool(baseline)
    figure.suptitle(_wrapped(text, figure))
    finished = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    for axes in grid:
        _baseline_line(axes, baseline)
        key = axes.get_xlabel()
        kind = next(trial.distributions[key] for trial in finished if key in trial.distributions)
        if isinstance(kind, CategoricalDistribution):
            used = [choice for choice in kind.choices if any(t.params.get(key, ...) == choice for t in finished)]
            axes.set_xticks(range(len(used)), [_in_lines(str(choice)) for choice in used])
            axes.set_xlim(-0.5, len(used) - 0.5)
            axes.tick_params(axis="x", labelrotation=90 if any(len(str(choice)) > 6 for choice in used) else 0)
        elif axes.get_xscale() == "log":
            _label_decades(axes.xaxis, *axes.get_xlim())
            axes.tick_params(axis="x", labelrotation=45)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=isinstance(kind, IntDistribution), steps=[1, 2, 5, 10]))
    bar = figure.axes[-1]
    bar.set_ylabel("trial")
    bar.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _baseline_line(axes: Axes, baseline: RunMetrics | None) -> None:
    if baseline:
        axes.axhline(
            baseline.val_acc, color="black", linestyle="--", linewidth=1.4, zorder=1, label="baseline (no teacher)"
        )


def _label_decades(axis: Axis, low: float, high: float) -> None:
    """A few plain numbers along a logarithmic axis, however wide it is."""
    subs = (1, 2, 5) if high < 30 * low else (1, 3) if high < 3000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _in_lines(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 16))


def _resized(axes: Axes, width: float, height: float) -> Figure:
    """The figure of a picture of Optuna's, with a size in inches, and space for all its texts."""
    figure = axes.figure
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    return figure


def _wrapped(text: str, figure: Figure) -> str:
    """A title in as many lines as it needs, at about 10 letters an inch."""
    return "\n".join(textwrap.wrap(text, int(figure.get_size_inches()[0] * 10)))
