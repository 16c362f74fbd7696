"""Each generated trip beside the real trip that its query is from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.data.trips import Trips
from utils.judging.figures import Column, Figure, figures_of
from utils.judging.generated import GeneratedTrips, reaches
from utils.judging.measures import trip_seconds
from utils.judging.pairs import pair_distances
from utils.judging.sphere import MEAN_RADIUS_KM

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class QueryMetrics:
    """Metrics of generated trips that have a real trip, [P] each."""

    real: Ints  # index of the real trip
    common: Ints  # distinct roads that both trips have
    common_visits: Ints  # roads that both trips have, each as often as both take it
    made_roads: Ints
    real_roads: Ints
    road_edits: Ints  # Levenshtein distance of the roads
    is_equal: NDArray[np.bool_]  # the same roads in the same order
    overlap: Floats  # length of the common roads / length of all roads of both
    hausdorff_km: Floats
    dtw_km: Floats
    edr: Floats
    made_s: Ints  # duration
    real_s: Ints
    reached: NDArray[np.bool_]

    @property
    def precision(self) -> Floats:
        return self.common_visits / self.made_roads

    @property
    def recall(self) -> Floats:
        return self.common_visits / self.real_roads

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall."""
        return 2 * self.common_visits / (self.made_roads + self.real_roads)

    @property
    def duration_error_s(self) -> Floats:
        return np.abs(self.made_s - self.real_s).astype(np.float64)


def query_metrics(
    generated: GeneratedTrips, real: Trips, match: Ints, center: Floats, length_m: Floats
) -> QueryMetrics:
    """Compare the generated trips that have a real trip with it.

    Args:
        generated: n trips.
        real: the real trips.
        match: [n], index of each one's real trip, or -1.
        center: [N, 2], (lon, lat) of the roads in degrees.
        length_m: [N], of the roads.
    """
    chosen = np.flatnonzero(match >= 0)
    pairs = np.stack([chosen, match[chosen]], axis=1)
    distances = pair_distances(center, generated.trips, real, pairs)
    common, common_visits, common_m, all_m = _overlap(generated.trips, real, pairs, length_m)
    edits, lengths = distances.road_edits, (distances.first_length, distances.second_length)
    return QueryMetrics(
        real=match[chosen],
        common=common,
        common_visits=common_visits,
        made_roads=lengths[0],
        real_roads=lengths[1],
        road_edits=edits,
        is_equal=edits == 0,
        overlap=common_m / np.where(all_m > 0, all_m, 1.0),
        hausdorff_km=distances.hausdorff * MEAN_RADIUS_KM,
        dtw_km=distances.dtw * MEAN_RADIUS_KM,
        edr=distances.edr,
        made_s=trip_seconds(generated.trips)[chosen],
        real_s=trip_seconds(real)[match[chosen]],
        reached=reaches(generated, real, match)[chosen],
    )


def _overlap(made: Trips, real: Trips, pairs: Ints, length_m: Floats) -> tuple[Ints, Ints, Floats, Floats]:
    """Of each pair [P]: distinct roads that both have, how often both take these, and their length; that of all."""
    size = len(length_m)

    def distinct(trips: Trips, chosen: Ints) -> tuple[Ints, Ints]:
        """pair * N + road, ascending, each once; and how often the trip takes it."""
        lengths = np.diff(trips.offset)[chosen]
        ends = np.cumsum(lengths)
        positions = np.repeat(trips.offset[chosen] - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)
        return np.unique(
            np.repeat(np.arange(len(chosen)), lengths) * size + trips.road_id[positions], return_counts=True
        )

    (first, first_visits), (second, second_visits) = distinct(made, pairs[:, 0]), distinct(real, pairs[:, 1])
    both, in_first, in_second = np.intersect1d(first, second, assume_unique=True, return_indices=True)
    either = np.union1d(first, second)
    common = np.bincount(both // size, minlength=len(pairs))
    visits = np.zeros(len(pairs), dtype=np.int64)
    np.add.at(visits, both // size, np.minimum(first_visits[in_first], second_visits[in_second]))
    common_m, all_m = (np.bincount(key // size, length_m[key % size], len(pairs)) for key in (both, either))
    return common, visits, common_m, all_m


def same_query_figures(metrics: QueryMetrics, seed: int) -> list[Figure]:
    """The figures of a file beside the real trips of its queries: means over the trips."""
    m = metrics
    columns = [
        Column("reached", "share that reaches its destination", "", m.reached),
        Column("equal_paths", "share of paths equal to the real one", "", m.is_equal),
        Column("precision", "precision of roads", "", m.precision),
        Column("recall", "recall of roads", "", m.recall),
        Column("f1", "F1 of roads", "", m.f1),
        Column("libcity_precision", "precision, all trips' roads as one", "", m.common, m.made_roads),
        Column("libcity_recall", "recall, all trips' roads as one", "", m.common, m.real_roads),
        Column("overlap", "overlap by length", "", m.overlap),
        Column("edit_distance", "edit distance", "roads", m.road_edits),
        Column("hausdorff_km", "Hausdorff distance", "km", m.hausdorff_km),
        Column("dtw_km", "DTW", "km", m.dtw_km),
        Column("edr", "EDR, 100 m", "", m.edr),
        Column("duration_mae_s", "error of the duration (MAE)", "s", m.duration_error_s),
        Column("duration_bias_s", "bias of the duration", "s", m.made_s - m.real_s),
    ]
    return figures_of(columns, seed)


def extra_numbers(metrics: QueryMetrics, road_usage_jsd: float) -> dict[str, float]:
    """Further golden numbers: route planning by LibCity's formulas, whose precision and recall are ratios of sums."""
    m = metrics
    precision, recall = (m.common.sum() / roads.sum() for roads in (m.made_roads, m.real_roads))
    total = precision + recall
    return {
        "libcity_precision": float(precision),
        "libcity_recall": float(recall),
        "libcity_f1": float(2 * precision * recall / total) if total else 0.0,
        "libcity_edt": float(m.road_edits.mean()),
        "exact_path_rate": float(m.is_equal.mean()),
        "reached_rate": float(m.reached.mean()),
        "mean_roads_real": float(m.real_roads.mean()),
        "mean_roads_generated": float(m.made_roads.mean()),
        "road_usage_jsd": road_usage_jsd,
        "trip_duration_mae_s": float(m.duration_error_s.mean()),
        "trip_duration_real_mean_s": float(m.real_s.mean()),
        "trip_duration_generated_mean_s": float(m.made_s.mean()),
    }
