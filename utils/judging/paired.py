"""Two models on the same queries: is one better, and by how much?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.judging.figures import interval, resample
from utils.judging.same_query import QueryMetrics

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """Something that is better when it is higher, or lower."""

    key: str
    label: str
    unit: str
    higher_is_better: bool


METRICS = (
    Metric("reached", "reached", "", True),
    Metric("f1", "F1 of roads", "", True),
    Metric("dtw_km", "DTW", "km", False),
    Metric("edr", "EDR, 100 m", "", False),
    Metric("duration_error_s", "error of the duration", "s", False),
)


@dataclass(frozen=True)
class Difference:
    """The difference of two models in one metric: second minus first."""

    metric: Metric
    n: int  # queries
    seeds: int
    first_mean: float
    second_mean: float
    mean: float
    low: float  # of the 95 % interval: queries are resampled, and seeds where there are several
    high: float
    p: float  # Wilcoxon signed-rank test over the queries; each query's difference is the mean over the seeds
    effect: float  # matched-pairs rank-biserial correlation: -1 to 1; 0: as many (and as large) gains as losses
    by_seed: tuple[float, ...]  # mean difference of each seed
    p_seeds: float  # t test over the seeds; NaN: there is one seed
    p_holm: float = math.nan  # p, corrected for the number of metrics that are tested together

    @property
    def better(self) -> int:
        """1: the second model is better, -1: the first one; 0: the interval contains 0, or has no width."""
        sign = 1 if self.metric.higher_is_better else -1
        return sign * (int(self.low > 0) - int(self.high < 0))


def paired_difference(metric: Metric, first: Floats, second: Floats, seed: int = 0) -> Difference:
    """Compare two models in one metric.

    Args:
        metric: what the values are.
        first: [S, Q], of the first model, trained with S seeds, for Q queries (or trips, or steps).
        second: [S, Q], of the second model, for the same queries; seed i is compared with seed i.
        seed: of the bootstrap.
    """
    from scipy import stats  # here: its import takes a second

    difference = second.astype(np.float64) - first
    seeds, queries = difference.shape
    mean = float(difference.mean())
    sizes = [queries] if seeds == 1 else [queries, seeds]
    draws = []
    for query_weight, *seed_weight in resample(sizes, seed):
        by_query = seed_weight[0] @ difference / seeds if seed_weight else difference
        draws.append((query_weight * by_query).sum(axis=1) / queries)
    low, high = interval(np.concatenate(draws))
    # Rounded: differences that are equal but for the last bit shall have equal ranks.
    per_query = np.round(difference.mean(axis=0), 12)
    by_seed = difference.mean(axis=1)
    return Difference(
        metric=metric,
        n=queries,
        seeds=seeds,
        first_mean=float(first.mean()),
        second_mean=float(second.mean()),
        mean=mean,
        low=low,
        high=high,
        p=float(stats.wilcoxon(per_query).pvalue) if per_query.any() else 1.0,
        effect=rank_biserial(per_query),
        by_seed=tuple(by_seed.tolist()),
        p_seeds=float(stats.ttest_1samp(by_seed, 0).pvalue) if seeds > 1 and np.ptp(by_seed) > 0 else math.nan,
    )


def rank_biserial(difference: Floats) -> float:
    """(ranks of gains - ranks of losses) / all ranks, of the sizes of the differences [Q] but 0 (Kerby 2014)."""
    from scipy import stats  # as above

    difference = difference[difference != 0]
    if not len(difference):
        return 0.0
    rank = stats.rankdata(np.abs(difference))
    return float((rank * np.sign(difference)).sum() / rank.sum())


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number, by Holm's method."""
    order, least, found = np.argsort(p), 0.0, [1.0] * len(p)
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - place) * p[i]))
        found[i] = least
    return found


@dataclass(frozen=True)
class Comparison:
    """Two models over the queries that all their files have."""

    first: str
    second: str
    differences: list[Difference]


def compare_models(
    first: tuple[str, Sequence[QueryMetrics]], second: tuple[str, Sequence[QueryMetrics]], seed: int = 0
) -> Comparison:
    """Compare the generated trips of two models, each with its name and the metrics of one file for each seed.

    Raises:
        UserError: another number of seeds, or no query that all files have.
    """
    names, files = (first[0], second[0]), (first[1], second[1])
    if len(files[0]) != len(files[1]):
        raise UserError(
            f"{names[0]} has {len(files[0])} files and {names[1]} {len(files[1])}: expected as many, one for each seed"
        )
    common = files[0][0].real
    for metrics in (*files[0], *files[1]):
        common = np.intersect1d(common, metrics.real)
    if not len(common):
        raise UserError(f"{names[0]} and {names[1]}: no common query that all their files have a trip for")
    differences = []
    for metric in METRICS:
        values = [np.stack([_of_queries(metrics, metric.key, common) for metrics in model]) for model in files]
        differences.append(paired_difference(metric, *values, seed))
    return Comparison(*names, correct_together(differences))


def correct_together(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences with `p_holm`, corrected for their number."""
    corrected = holm([difference.p for difference in differences])
    return [Difference(**vars(d) | {"p_holm": p}) for d, p in zip(differences, corrected, strict=True)]


def _of_queries(metrics: QueryMetrics, key: str, queries: NDArray[np.int64]) -> Floats:
    """A metric of the trips of the given queries (indices of real trips), [Q]."""
    real, place = np.unique(metrics.real, return_index=True)
    return getattr(metrics, key)[place[np.searchsorted(real, queries)]].astype(np.float64)
