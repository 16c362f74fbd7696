"""Walks take the best road, or draw from the model's own distribution, whatever else is walked at the same time."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from small_city import START_S, Small

from utils.generation.generator import GenerationOptions, TripGenerator
from utils.generation.paths import Query, Trip
from utils.generation.reachability import Reachability

QUERY = Query(0, 6, START_S, 17)


def generated(small: Small, queries: list[Query], slots: int = 256, **options) -> list[list[Trip]]:
    generator = TripGenerator(small.paths(), small.city.network, GenerationOptions(**options), 200, slots)
    found = dict(generator.trips(queries))
    return [found[place] for place in range(len(queries))]


@pytest.mark.parametrize("query", [QUERY, Query(5, 2, START_S, 0), Query(4, 6, START_S, 0)])
def test_greedy_takes_the_most_probable_road_at_each_step(small: Small, query: Query) -> None:
    [[trip]] = generated(small, [query], method="greedy", max_expansions=20)
    after, path, log_prob = small.next_of(query), [query.origin], 0.0
    while path[-1] != query.destination and len(path) <= 20 and (candidates := after(tuple(path))):
        path.append(max(candidates, key=candidates.get))
        log_prob = candidates[path[-1]]
    assert trip.road == path
    assert (trip.status == "reached") == (path[-1] == query.destination)
    assert trip.log_prob == pytest.approx(log_prob, abs=1e-5)
    assert trip.expansions == len(path) - 1


@pytest.fixture(scope="module")
def after(small: Small) -> Callable[[tuple[int, ...]], dict[int, float]]:
    """What the model says, asked once about each path."""
    return small.next_of(QUERY)


def probabilities(
    small: Small, after: Callable, temperature: float, top_k: int, roads: int = 14
) -> dict[tuple[int, ...], float]:
    """Of all paths to the destination of up to so many roads, each step among the roads that lead there."""
    leads = Reachability(small.city.network).to(QUERY.destination)
    found, todo = {}, [((QUERY.origin,), 0.0, 1.0)]
    while todo:
        path, log_prob, probability = todo.pop()
        if path[-1] == QUERY.destination:
            found[path] = probability
        elif len(path) < roads:
            weights = {r: np.exp((value - log_prob) / temperature) for r, value in after(path).items() if leads(r)}
            kept = sorted(weights, key=weights.get, reverse=True)[: top_k or None]
            total, values = sum(weights[road] for road in kept), after(path)
            todo += [((*path, road), values[road], probability * weights[road] / total) for road in kept]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (2.0, 0), (0.5, 2)])
def test_samples_have_the_distribution_of_the_model(
    small: Small, after: Callable, temperature: float, top_k: int
) -> None:
    number = 1000
    options = {"method": "sample", "k": number, "temperature": temperature, "top_k": top_k}
    [trips] = generated(small, [QUERY], slots=1000, **options)
    drawn = Counter(tuple(trip.road) for trip in trips)
    distribution = probabilities(small, after, temperature, top_k)
    expected = {path: number * p for path, p in distribution.items() if number * p >= 5}
    assert len(expected) >= 5
    found = [drawn[path] for path in expected]
    rest = number - sum(expected.values())
    from scipy.stats import chisquare  # here: its import takes a second

    result = chisquare([*found, number - sum(found)], [*expected.values(), rest])
    assert result.pvalue > 1e-3
    assert all(trip.status == "reached" for trip in trips)


@pytest.mark.slow
def test_a_draw_depends_on_seed_query_and_rank_alone(small: Small) -> None:
    queries = [Query(0, 6, START_S + i, i) for i in range(12)]
    options = {"method": "sample", "temperature": 3.0, "seed": 5}
    alone = [[trip.road for trip in generated(small, [query], k=3, **options)[0]] for query in queries]
    for slots, order in ((1, queries), (5, queries[::-1]), (256, queries)):
        together = generated(small, order, slots=slots, k=3, **options)
        assert {q.row: [trip.road for trip in trips] for q, trips in zip(order, together, strict=True)} == dict(
            enumerate(alone)
        )
    fewer = generated(small, queries, k=1, **options)
    assert [[trip.road for trip in trips] for trips in fewer] == [trips[:1] for trips in alone]
    other = generated(small, queries, k=3, **options | {"seed": 6})
    assert [[trip.road for trip in trips] for trips in other] != alone


def test_reachability_is_what_a_plain_search_finds(small: Small) -> None:
    network = small.city.network
    after = {r: network.reach_road[network.reach_ptr[r] : network.reach_ptr[r + 1]].tolist() for r in range(9)}
    for destination in range(9):
        reaching = {destination}
        while more := {r for r in after if r not in reaching and reaching & set(after[r])}:
            reaching |= more
        leads = Reachability(network).to(destination)
        assert [bool(leads(road)) for road in range(9)] == [road in reaching for road in range(9)]
