"""The figures of generated trips as a table, and as JSON."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from utils.judging.distributions import DRAWS
from utils.judging.figures import RESAMPLES, Figure
from utils.judging.judge import FEW, Judgement
from utils.judging.paired import Comparison, Difference

BLOCKS = {
    "published": "As the published notebook",
    "fork": "As the fork of the published code",
    "same_query": "Beside the real trip of the same query",
    "distributions": "Distributions and character",
}
INTERVAL = "In []: 95 % interval (bootstrap). Noise floor: the same JSD of as many real trips, drawn from train.csv"


def figures_by_block(judgement: Judgement) -> dict[str, list[Figure]]:
    """All figures of a file, by the keys of `BLOCKS`; empty blocks are left out."""
    found = {
        "published": judgement.published.figures,
        "fork": judgement.fork.figures,
        "same_query": judgement.same_query,
        "distributions": judgement.distributions,
    }
    return {key: figures for key, figures in found.items() if figures}


def format_report(judgements: Sequence[Judgement], comparison: Comparison | None, title: str) -> str:
    """Tables with a column for each file, and the comparison of two models."""
    parts = [title]
    if judgements:
        parts.append(f"{INTERVAL} ({DRAWS} draws, mean [5 %, 95 %]).{_few(judgements)}")
        blocks = [figures_by_block(judgement) for judgement in judgements]
        parts += [_block(name, BLOCKS[name], blocks, judgements) for name in BLOCKS if any(name in b for b in blocks)]
    if comparison:
        parts.append(format_comparison(comparison))
    return "\n\n".join(parts)


def _few(judgements: Sequence[Judgement]) -> str:
    few = min(len(judgement.trips) for judgement in judgements)
    return f"\n{few:,} trips only: with fewer than {FEW:,}, divergences are mostly noise." if few < FEW else ""


def _block(name: str, title: str, blocks: list[dict[str, list[Figure]]], judgements: Sequence[Judgement]) -> str:
    by_key = [{figure.key: figure for figure in block.get(name, [])} for block in blocks]
    first = {key: figure for figures in reversed(by_key) for key, figure in figures.items()}
    real = {figure.real_of: figure for figure in first.values() if figure.real_of}
    has_floor = any(figure.floor for figure in first.values())
    labels = [judgement.label for judgement in judgements]
    rows = [[title, "unit", "N", *labels, *(["real trips"] * bool(real)), *(["noise floor"] * has_floor)]]
    for key, figure in first.items():
        if figure.real_of:
            continue
        numbers = sorted({figures[key].n for figures in by_key if key in figures})
        counted = " to ".join(f"{n:,}" for n in (numbers if len(numbers) == 1 else [numbers[0], numbers[-1]]))
        cells = [_value(figures[key]) if key in figures else "-" for figures in by_key]
        floor = figure.floor
        noise = f"{_number(floor.mean)} [{_number(floor.low)}, {_number(floor.high)}]" if floor else ""
        beside = [_value(real[key]) if key in real else ""] * bool(real)
        rows.append([figure.label, figure.unit, counted, *cells, *beside, *([noise] * has_floor)])
    return _table(rows)


def format_comparison(comparison: Comparison) -> str:
    """The comparison of two models, and what it says in a sentence."""
    differences = comparison.differences
    first, second, seeds = comparison.first, comparison.second, differences[0].seeds
    title = f"{second} - {first}, {differences[0].n:,} queries" + (f", {seeds} seeds" if seeds > 1 else "")
    header = [title, "unit", first, second, "difference [95 %]", "p", "p (Holm)", "effect"]
    rows = [header + (["by seed", "p (seeds)"] if seeds > 1 else []) + ["better"]]
    for d in differences:
        row = [d.metric.label, d.metric.unit, _number(d.first_mean), _number(d.second_mean)]
        row += [f"{_number(d.mean, sign=True)} [{_number(d.low, sign=True)}, {_number(d.high, sign=True)}]"]
        row += [format_p(d.p), format_p(d.p_holm), f"{d.effect:+.2f}"]
        if seeds > 1:
            row += [" ".join(_number(value, sign=True) for value in d.by_seed), format_p(d.p_seeds)]
        rows.append([*row, {1: second, -1: first, 0: "-"}[d.better]])
    return f"{_table(rows)}\n\n{verdict(comparison)}"


def verdict(comparison: Comparison) -> str:
    """What the comparison says, in a sentence."""

    def names(sign: int) -> str:
        found = [_gain(d) for d in comparison.differences if d.better == sign]
        return ", ".join(found)

    better, worse = names(1), names(-1)
    if not better and not worse:
        return f"No difference between {comparison.second} and {comparison.first} is shown: all intervals contain 0."
    parts = [f"better in {better}"] if better else []
    parts += [f"worse in {worse}"] if worse else []
    rest = len(comparison.differences) - sum(d.better != 0 for d in comparison.differences)
    open_rest = f"; no difference is shown in the other {rest}" if rest else ""
    return f"{comparison.second} is {' and '.join(parts)} than {comparison.first}{open_rest}."


def _gain(difference: Difference) -> str:
    unit = f" {difference.metric.unit}" if difference.metric.unit else ""
    return f"{difference.metric.label} ({_number(difference.mean, sign=True)}{unit})"


def _value(figure: Figure) -> str:
    if math.isnan(figure.value):
        return "-"
    if math.isnan(figure.low):
        return _number(figure.value)
    return f"{_number(figure.value)} [{_number(figure.low)}, {_number(figure.high)}]"


def _number(value: float, sign: bool = False) -> str:
    """Four decimals of small numbers, fewer of large ones."""
    if math.isnan(value):
        return "-"
    decimals = 4 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:{'+' if sign else ''}.{decimals}f}"


def format_p(value: float) -> str:
    """A p value; `-` where there is none."""
    return "-" if math.isnan(value) else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _table(rows: list[list[str]]) -> str:
    """Columns side by side, the first one to the left, under a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(pairs)).rstrip()
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def report_json(
    judgements: Sequence[Judgement], comparison: Comparison | None, source: dict[str, Any]
) -> dict[str, Any]:
    """All figures; numbers that do not exist are null.

    In `public_notebook`, `fork` and `extra` the metrics have the names that they have in their source.
    """
    content = source | {
        "resamples": RESAMPLES,
        "floor_draws": DRAWS,
        "generated": [
            {
                "label": judgement.label,
                "file": judgement.source,
                "trips": len(judgement.trips),
                "trips_with_real_trip": len(judgement.queries.real) if judgement.queries else 0,
                "public_notebook": judgement.published.numbers,
                "fork": judgement.fork.numbers,
                "extra": judgement.extra,
                "figures": {
                    block: [dataclasses.asdict(figure) for figure in figures]
                    for block, figures in figures_by_block(judgement).items()
                },
            }
            for judgement in judgements
        ],
    }
    if comparison:
        content["comparison"] = comparison_json(comparison)
    return _without_nan(content)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison of two models."""
    rows = []
    for difference in comparison.differences:
        values = dataclasses.asdict(difference)
        better = {1: comparison.second, -1: comparison.first, 0: None}[difference.better]
        rows.append(values.pop("metric") | values | {"better": better})
    names = {"first": comparison.first, "second": comparison.second}
    return _without_nan(names | {"differences": rows, "verdict": verdict(comparison)})


def _without_nan(value: Any) -> Any:
    """The same tree with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
