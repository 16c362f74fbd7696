"""What is reported of each metric: its value, from how many, its unit, its interval, the noise floor."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
MAX_WEIGHTS = 2_000_000  # of resamples that are held at once


@dataclass(frozen=True)
class Floor:
    """What a metric is between real trips and other real trips."""

    mean: float
    low: float  # 5 % of the draws are lower
    high: float  # 5 % of the draws are higher


@dataclass(frozen=True)
class Figure:
    """One metric of one file."""

    key: str
    label: str
    unit: str
    n: int  # trips, pairs or steps that it is made of
    value: float  # NaN: there is nothing to make it of
    low: float = math.nan  # of the 95 % interval
    high: float = math.nan
    floor: Floor | None = None
    real_of: str = ""  # key of the figure that this one is the same of, of the real trips


def interval(draws: Floats) -> tuple[float, float]:
    """The 95 % interval of a value from its bootstrap draws [R]."""
    if not np.isfinite(draws).all():
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def unbiased_interval(value: float, draws: Floats, bounds: tuple[float, float]) -> tuple[float, float]:
    """The 95 % interval of a distance between samples, from its bootstrap draws [R], within `bounds`.

    Resamples are rougher than the samples, so their distances come out too large: by the mean of the draws minus the
    value, which is taken off all of them.
    """
    low, high = np.clip(interval(draws - (draws.mean() - value)), *bounds).tolist()
    return low, high


def resample(sizes: Sequence[int], seed: int, width: int = 1) -> Iterator[tuple[Floats, ...]]:
    """Bootstrap samples: how often each item is drawn, [b, n] for each of `sizes`, until there are `RESAMPLES`.

    Args:
        sizes: numbers of items n, each drawn from with replacement.
        seed: of the draws; equal arguments give equal draws.
        width: of what a caller makes of a sample, so that `b` of these fit into memory, too.
    """
    generators = [np.random.default_rng([seed, place]) for place in range(len(sizes))]
    block = max(1, min(RESAMPLES, MAX_WEIGHTS // max(*sizes, width)))
    for start in range(0, RESAMPLES, block):
        number = min(block, RESAMPLES - start)
        first = np.arange(number)[:, None]
        yield tuple(
            np.bincount((generator.integers(0, n, (number, n)) + first * n).ravel(), minlength=number * n)
            .reshape(number, n)
            .astype(np.float64)
            for generator, n in zip(generators, sizes, strict=True)
        )


@dataclass(frozen=True)
class Column:
    """A metric with a value for each of n trips or pairs, whose figure is their mean or a ratio of sums."""

    key: str
    label: str
    unit: str
    values: Floats  # [n]
    weights: Floats | None = None  # [n]; the figure is sum(values) / sum(weights)
    n: int | None = None  # what is counted, if it is not the n items
    real_of: str = ""  # as in `Figure`


def figures_of(columns: Sequence[Column], seed: int) -> list[Figure]:
    """The figures of columns that have the same n items; intervals from resampling the items."""
    size = len(columns[0].values)
    if not size:
        return [Figure(c.key, c.label, c.unit, 0, math.nan, real_of=c.real_of) for c in columns]
    top = np.stack([c.values for c in columns], axis=1).astype(np.float64)
    bottom = np.stack([np.ones(size) if c.weights is None else c.weights for c in columns], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.concatenate([(w @ top) / (w @ bottom) for (w,) in resample([size], seed)])
        values = top.sum(axis=0) / bottom.sum(axis=0)
    found = []
    for i, c in enumerate(columns):
        low, high = interval(draws[:, i])
        number = size if c.n is None else c.n
        found.append(Figure(c.key, c.label, c.unit, number, float(values[i]), low, high, real_of=c.real_of))
    return found
