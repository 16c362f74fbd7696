"""Divergences, their noise floor, and intervals of what is reported."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from utils.data.trips import Trips
from utils.judging.distributions import Quantity, Reference, Values, divergence, jensen_shannon
from utils.judging.figures import RESAMPLES, Column, figures_of, resample, unbiased_interval

MINUTE, HOUR = 60, 3600


def trips_of(durations_s: list[int], start_s: int = 0) -> Trips:
    """Trips of two roads."""
    n = len(durations_s)
    time_s = np.stack([np.full(n, start_s), start_s + np.array(durations_s)], axis=1).ravel()
    zeros = np.zeros(2 * n, dtype=np.int32)
    return Trips(np.arange(n + 1) * 2, zeros, time_s, zeros)


def minutes(trips: Trips) -> Values:
    return Values((trips.time_s[1::2] - trips.time_s[::2]) / MINUTE, np.arange(len(trips) + 1))


DURATION = Quantity("duration", "duration", "min", minutes)


def test_the_divergence_is_that_of_scipy_and_ln_2_at_most() -> None:
    p, q = np.array([3.0, 0, 5, 2]), np.array([1.0, 4, 0, 5])
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q) ** 2)
    assert jensen_shannon(np.array([1.0, 0]), np.array([0.0, 7])) == pytest.approx(math.log(2))
    assert jensen_shannon(np.stack([p, q]), q).tolist() == pytest.approx([jensen_shannon(p, q), 0])


def test_jsd_and_wasserstein_distance_of_durations() -> None:
    real, made = trips_of([60, 120, 180, 240, 300, 300]), trips_of([90, 60, 400, 1000])
    jsd, distance = divergence(Reference(DURATION, real, real), made, seed=0)
    edges = [*np.linspace(0, 5, 100), math.inf]
    counts = [np.histogram(minutes(trips).value, edges)[0] for trips in (real, made)]
    assert jsd.value == pytest.approx(jensenshannon(*counts) ** 2)
    assert distance.value == pytest.approx(wasserstein_distance(minutes(real).value, minutes(made).value))
    assert (jsd.key, distance.key, distance.unit) == ("duration_jsd", "duration_w1_min", "min")
    assert distance.low <= distance.value <= distance.high


def test_an_hour_before_midnight_is_an_hour_from_an_hour_after() -> None:
    hours = Quantity(
        "hour",
        "hour",
        "h",
        lambda trips: Values(trips.time_s[::2] // HOUR, np.arange(len(trips) + 1)),
        lambda real: np.arange(25.0),
        is_circular=True,
    )
    real, made = trips_of([60] * 5, start_s=23 * HOUR), trips_of([60] * 5)
    _, distance = divergence(Reference(hours, real, real), made, seed=0)
    assert distance.value == pytest.approx(1)


def test_the_noise_floor_is_what_real_trips_are_from_real_trips() -> None:
    generator = np.random.default_rng(0)
    real, train = (trips_of(generator.integers(60, 900, n).tolist()) for n in (150, 2000))
    reference = Reference(DURATION, real, train)
    few, many = (reference.floor(n, seed=3)[0] for n in (150, 1500))
    assert len(few) == 200 and few.mean() > many.mean() > 0
    # As good as real: within the floor. Another distribution: beyond it.
    [same, *_] = divergence(reference, trips_of(generator.integers(60, 900, 150).tolist()), seed=3)
    [other, *_] = divergence(reference, trips_of(generator.integers(600, 900, 150).tolist()), seed=3)
    assert same.value < same.floor.high * 1.2 < other.value
    assert few.tolist() == Reference(DURATION, real, train).floor(150, seed=3)[0].tolist()
    assert few.tolist() != Reference(DURATION, real, train).floor(150, seed=4)[0].tolist()


def test_more_trips_than_train_has_are_drawn_with_replacement() -> None:
    real = trips_of([60, 120, 180])
    assert np.isfinite(Reference(DURATION, real, real).floor(50, seed=0)[0]).all()


def test_trips_of_one_road_have_no_steps_and_no_divergence_of_these() -> None:
    none = Quantity("duration", "d", "min", lambda t: Values(np.empty(0), np.zeros(len(t) + 1, dtype=np.int64)))
    [figure] = divergence(Reference(none, trips_of([60]), trips_of([60])), trips_of([60]), seed=0)
    assert math.isnan(figure.value) and figure.n == 0


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        [figure] = figures_of([Column("x", "x", "", generator.normal(5, 2, 80))], seed)
        covered += figure.low <= 5 <= figure.high
        assert figure.high - figure.low == pytest.approx(2 * 1.96 * 2 / math.sqrt(80), rel=0.35)
    assert 50 <= covered <= 60


def test_a_ratio_of_sums_is_resampled_as_one() -> None:
    top, bottom = np.array([1.0, 2, 3]), np.array([10.0, 10, 10])
    [figure] = figures_of([Column("x", "x", "", top, bottom)], 0)
    assert figure.value == pytest.approx(0.2) and 0.1 <= figure.low < 0.2 < figure.high <= 0.3


def test_a_bias_of_resampling_does_not_move_the_interval_off_the_value() -> None:
    draws = np.linspace(1.4, 1.6, 101)
    assert unbiased_interval(1.0, draws, (0, 2)) == pytest.approx((0.905, 1.095))
    assert unbiased_interval(1.0, draws, (0, 1)) == pytest.approx((0.905, 1))


def test_resamples_depend_on_the_seed_and_not_on_the_size_of_a_block() -> None:
    small, large = (np.concatenate([w for w, _ in resample([7, 3], 5, width)]) for width in (1, 500_000))
    assert small.shape == (RESAMPLES, 7) and (small == large).all()
    assert (small.sum(axis=1) == 7).all()
    assert (small != np.concatenate([w for (w,) in resample([7], 6)])).any()
