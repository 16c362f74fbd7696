"""Two models on the same queries: which one is better, by how much, and how surely."""

import dataclasses
import math

import numpy as np
import pytest
from helpers import error_of

from utils.judging.paired import METRICS, Metric, compare_models, holm, paired_difference, rank_biserial
from utils.judging.report import comparison_json, format_comparison, verdict
from utils.judging.same_query import QueryMetrics

F1 = Metric("f1", "F1", "", True)
ERROR = Metric("error", "error", "s", False)
N = 200


def metrics(quality: float, seed: int, queries: np.ndarray | None = None) -> QueryMetrics:
    """Metrics of a model of this quality, 0 to 1: easy and hard queries are so for all models."""
    queries = np.arange(N) if queries is None else queries
    hard = np.random.default_rng(0).uniform(0, 0.3, N)[queries]
    noise = np.random.default_rng(seed).normal(0, 0.05, len(queries))
    good = np.clip(quality - hard + noise, 0, 1)
    roads = np.full(len(queries), 100)
    values = {field.name: roads for field in dataclasses.fields(QueryMetrics)}
    values |= {"real": queries, "common_visits": np.rint(100 * good).astype(int), "dtw_km": 1 - good, "edr": 1 - good}
    values |= {"made_s": np.rint(500 + 300 * (1 - good)), "real_s": np.full(len(queries), 500), "reached": good > 0.3}
    return QueryMetrics(**values)


def test_the_better_model_is_found_in_every_metric_whatever_its_direction() -> None:
    comparison = compare_models(("vanilla", [metrics(0.7, 1)]), ("distilled", [metrics(0.75, 2)]))
    assert [d.metric for d in comparison.differences] == list(METRICS)
    by_key = {d.metric.key: d for d in comparison.differences}
    assert by_key["f1"].mean == pytest.approx(0.05, abs=0.015) and by_key["f1"].low > 0
    assert by_key["dtw_km"].high < 0 < by_key["f1"].low and by_key["duration_error_s"].effect < -0.5
    assert all(by_key[key].better == 1 and by_key[key].p_holm < 0.001 for key in ("f1", "dtw_km", "edr"))
    assert by_key["f1"].n == N and math.isnan(by_key["f1"].p_seeds)
    assert verdict(comparison).startswith("distilled is better in F1 of roads (+0.0")
    swapped = compare_models(("distilled", [metrics(0.75, 2)]), ("vanilla", [metrics(0.7, 1)]))
    assert verdict(swapped).startswith("vanilla is worse in F1 of roads (-0.0")


def test_equal_models_do_not_differ() -> None:
    comparison = compare_models(("a", [metrics(0.7, 1)]), ("b", [metrics(0.7, 1)]))
    assert all((d.mean, d.p, d.effect, d.better) == (0, 1, 0, 0) for d in comparison.differences)
    assert verdict(comparison) == "No difference between b and a is shown: all intervals contain 0."


def test_luck_of_one_seed_is_not_taken_for_a_better_model() -> None:
    # Over the queries alone the mean difference of 0.05 would be certain: the seeds say that it is not.
    first = [metrics(0.7, seed) for seed in (1, 2, 3)]
    second = [metrics(quality, seed) for quality, seed in ((0.9, 4), (0.62, 5), (0.66, 6))]
    f1 = next(d for d in compare_models(("a", first), ("b", second)).differences if d.metric.key == "f1")
    assert f1.seeds == 3 and len(f1.by_seed) == 3 and f1.by_seed[0] == pytest.approx(0.2, abs=0.02)
    assert f1.p < 0.001 and f1.low < 0 < f1.high and f1.p_seeds > 0.3 and f1.better == 0
    steady = [metrics(0.75, seed) for seed in (4, 5, 6)]
    f1 = next(d for d in compare_models(("a", first), ("b", steady)).differences if d.metric.key == "f1")
    assert f1.better == 1 and f1.p_seeds < 0.05


def test_only_queries_that_all_files_have_are_compared() -> None:
    first, second = metrics(0.7, 1, np.arange(0, 150)), metrics(0.7, 2, np.arange(100, 200)[::-1])
    comparison = compare_models(("a", [first]), ("b", [second]))
    assert comparison.differences[0].n == 50
    expected = (second.f1[second.real < 150].mean() - first.f1[first.real >= 100].mean()).item()
    assert comparison.differences[1].mean == pytest.approx(expected)
    third = metrics(0.7, 2, np.arange(150, 200))
    assert "a and c: no common query" in error_of(compare_models, ("a", [first]), ("c", [third]))


def test_seeds_come_in_pairs() -> None:
    one, two = [metrics(0.7, 1)], [metrics(0.7, 1), metrics(0.7, 2)]
    assert "a has 1 files and b 2: expected as many" in error_of(compare_models, ("a", one), ("b", two))


def test_any_metric_can_be_compared_such_as_the_accuracy_of_each_trip() -> None:
    generator = np.random.default_rng(0)
    first = generator.uniform(0, 1, (2, 50))
    found = paired_difference(Metric("accuracy", "accuracy", "", True), first, first + 0.1)
    assert found.mean == pytest.approx(0.1) and found.low == pytest.approx(0.1) and found.effect == 1
    assert found.by_seed == pytest.approx((0.1, 0.1)) and found.better == 1
    lower = paired_difference(ERROR, first, first - 0.1)
    assert lower.better == 1 and lower.effect == -1


def test_effect_and_correction_are_those_of_the_literature() -> None:
    # Ranks of |1, -2, 3, 4|: gains 1 + 3 + 4, losses 2; a difference of 0 does not count.
    assert rank_biserial(np.array([1.0, -2, 3, 4, 0])) == pytest.approx((8 - 2) / 10)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_table_and_the_json_have_every_number() -> None:
    comparison = compare_models(
        ("vanilla", [metrics(0.7, s) for s in (1, 2)]), ("distilled", [metrics(0.8, s) for s in (3, 4)])
    )
    text, tree = format_comparison(comparison), comparison_json(comparison)
    for word in ("distilled - vanilla, 200 queries, 2 seeds", "p (Holm)", "p (seeds)", "by seed", "F1 of roads"):
        assert word in text
    assert tree["differences"][1]["key"] == "f1" and tree["differences"][1]["better"] == "distilled"
    assert tree["verdict"] in text and tree["first"] == "vanilla"
