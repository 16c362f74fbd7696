"""Drawn times have the spread that real ones have."""

import numpy as np
import pytest
from small_city import START_S

from utils.generation.paths import Query, Trip
from utils.generation.times import TimeResiduals, decompose


def residuals(rng: np.random.Generator, trip_std: float, step_std: float) -> tuple[np.ndarray, np.ndarray]:
    """Of 4,000 trips of 1 to 30 roads, around -0.2."""
    trip = np.repeat(np.arange(4000), rng.integers(1, 31, 4000))
    factor = rng.normal(0, trip_std, 4000)
    return trip, -0.2 + factor[trip] + rng.normal(0, step_std, len(trip))


@pytest.mark.parametrize(("trip_std", "step_std"), [(0.3, 0.6), (0.0, 0.5), (0.5, 0.0)])
def test_the_factors_of_trips_and_of_roads_are_told_apart(trip_std: float, step_std: float) -> None:
    found = decompose(*residuals(np.random.default_rng(0), trip_std, step_std))
    assert found.trip.std() == pytest.approx(trip_std, abs=0.02)
    assert found.step.std() == pytest.approx(step_std, abs=0.01)
    assert found.trip.mean() == pytest.approx(-0.2, abs=0.02)


def test_trips_of_one_road_are_enough() -> None:
    found = decompose(np.arange(500), np.random.default_rng(1).normal(0, 1, 500))
    assert found.step.tolist() == [0.0]
    assert found.trip.std() > 0


def test_times_that_are_drawn_depend_on_seed_query_and_rank_and_spread_as_the_residuals() -> None:
    trip = Trip(list(range(21)), [START_S + 20 * i for i in range(21)], [np.log1p(20)] * 20, -1.0, "reached", 3)
    found = TimeResiduals(np.array([-0.3, 0.3]), np.random.default_rng(2).normal(0, 0.2, 1000))

    def draw(seed: int) -> list[Trip]:
        return [found.draw(trip, Query(0, 20, START_S, row), rank, seed) for row in range(300) for rank in range(2)]

    drawn = draw(7)
    assert draw(7) == drawn
    assert sum(a == b for a, b in zip(draw(8), drawn, strict=True)) < 3
    assert len({tuple(other.time_s) for other in drawn}) > 595  # each query and rank has draws of its own
    assert all(other.road == trip.road and other.time_s[0] == START_S for other in drawn)
    minutes = np.array([other.time_s[-1] - START_S for other in drawn]) / 60
    fast, slow = minutes[minutes < 6.5], minutes[minutes >= 6.5]
    assert abs(len(fast) - 300) < 60  # two kinds of drivers
    assert slow.mean() / fast.mean() == pytest.approx(np.exp(0.6), rel=0.1)
    steps = np.concatenate([np.diff(other.time_s) for other in drawn])
    assert np.log1p(steps).std() == pytest.approx(np.hypot(0.3, 0.2), rel=0.1)
    assert (steps >= 0).all()
