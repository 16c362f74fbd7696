"""The searches find what they say: the published one path for path, the exact one the most probable paths."""

import ast
import csv
import heapq
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import MINI_CONFIG, PROJECT
from small_city import START_S, Small

from models.hoser import HOSER
from utils.config import load_config
from utils.data.dataset import City, load_city
from utils.data.trips import TimeStatistics
from utils.generation.generator import GenerationOptions, TripGenerator
from utils.generation.paths import Node, PathModel, Query, Trip
from utils.generation.queries import queries_of, read_queries
from utils.generation.reachability import Reachability
from utils.generation.search import SearchRule, search_trips

SHARED = PROJECT.parent / "shared"
MAX_LEN = 2000


@dataclass
class Published:
    """A city with weights, and what the published code generates for its test trips."""

    city: City
    model: HOSER
    expected: Path

    def paths(self) -> PathModel:
        return PathModel(self.model, self.city.network, TimeStatistics.from_trips(self.city.trips("train")))

    def trips(self, name: str) -> list[tuple[list[int], list[int]]]:
        with (self.expected / name).open(newline="") as file:
            rows = [[ast.literal_eval(text) for text in row.values()] for row in csv.DictReader(file)]
        return [
            (roads, np.array([t.removesuffix("Z") for t in times], dtype="M8[s]").astype(int).tolist())
            for roads, times in rows
        ]


@pytest.fixture(scope="module", params=["mini", "tiny"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "mini":
        golden, data = PROJECT / "tests" / "golden", PROJECT / "tests" / "golden" / "mini_city"
        settings = ["trajectory_encoder_config.num_layers=2"]
        (folder / "config.yaml").write_text(MINI_CONFIG)
    else:
        golden, data = SHARED / "golden", SHARED / "data" / "Tiny"
        settings = ["road_network_encoder_config.zone_id_num_embeddings=20"]
        (folder / "config.yaml").write_text("{}")
        if not (golden / "generation").is_dir() or not data.is_dir():
            pytest.skip("needs ../shared/golden and ../shared/data/Tiny")
    copy = Path(shutil.copytree(data, folder / "data", copy_function=shutil.copyfile))
    config = load_config("Golden", str(folder / "config.yaml"), settings)
    city = load_city("Golden", config, copy)
    model = HOSER(config, city.features).eval()
    model.load_state_dict(torch.load(golden / f"hoser_{request.param}" / "state_dict_trained.pth"))
    return Published(city, model, golden / "generation" / request.param)


@pytest.mark.parametrize("slots", [pytest.param(3, marks=pytest.mark.slow), 64, 1000])
def test_paths_times_expansions_and_probabilities_are_the_published_ones(published: Published, slots: int) -> None:
    expected, stats = (
        published.trips("generated.csv"),
        json.loads((published.expected / "search_stats.json").read_text()),
    )
    queries = queries_of(published.city.trips("test"))[: 20 if slots == 3 else None]
    found = dict(search(published.paths(), published.city, queries, SearchRule(), slots))
    for place in range(len(queries)):
        [trip] = found[place]
        assert (trip.road, trip.time_s) == expected[place]
        assert (trip.status, trip.expansions) == ("reached", stats["expansions"][place])
        assert trip.log_prob == pytest.approx(stats["log_prob"][place], abs=1e-5)


def test_at_the_limit_the_nearest_path_is_the_published_one(published: Published) -> None:
    expected, queries = published.trips("generated_limit20.csv"), queries_of(published.city.trips("test"))
    found = dict(search(published.paths(), published.city, queries, SearchRule(max_expansions=20), 64))
    for place, query in enumerate(queries):
        [trip] = found[place]
        assert (trip.road, trip.time_s) == expected[place]
        assert trip.status == ("reached" if trip.road[-1] == query.destination else "limit")
        assert trip.expansions <= 20
    assert {trip.status for [trip] in found.values()} == {"reached", "limit"}


def test_sampled_queries_are_the_published_ones(published: Published) -> None:
    with (published.expected / "sampled_queries_seed0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    queries = read_queries("train-od", published.city, len(rows), 0)
    assert [(q.origin, q.destination) for q in queries] == [(int(r["origin"]), int(r["destination"])) for r in rows]
    assert [f"{np.datetime64(q.start_s, 's')}Z" for q in queries] == [row["start_time"] for row in rows]


def test_more_queries_than_trips_can_be_sampled(small: Small) -> None:
    queries = read_queries("train-od", small.city, 40, 3)
    assert len(queries) == 40
    assert {(q.origin, q.destination) for q in queries} <= {(0, 6), (0, 2)}
    assert {q.row for q in queries} == set(range(40))


def search(paths: PathModel, city: City, queries: list[Query], rule: SearchRule, slots: int) -> list:
    return list(search_trips(paths, Reachability(city.network), queries, rule, slots))


def every_path(small: Small, query: Query, roads: int) -> tuple[dict[tuple[int, ...], float], float]:
    """All paths to the destination of up to so many roads, with their log-probabilities: plain recursion.

    And the highest log-probability of a path of so many roads that can still arrive.
    """
    after, found = small.next_of(query), {}
    todo, longest = [((query.origin,), 0.0)], -np.inf
    leads = Reachability(small.city.network).to(query.destination)
    while todo:
        path, log_prob = todo.pop()
        if path[-1] == query.destination:
            found[path] = log_prob
        elif len(path) == roads:
            longest = max(longest, log_prob)
        else:
            todo += [((*path, road), value) for road, value in after(path).items() if leads(road)]
    return found, longest


@pytest.mark.parametrize(("origin", "destination"), [(0, 6), (3, 2), (1, 7)])
def test_the_exact_search_finds_the_most_probable_paths(small: Small, origin: int, destination: int) -> None:
    query = Query(origin, destination, START_S, 0)
    paths, longest = every_path(small, query, 13)
    best = heapq.nlargest(6, paths.items(), key=lambda item: item[1])
    assert longest < best[-1][1]  # so that no longer path is among the best
    [(_, trips)] = search(small.paths(), small.city, [query], SearchRule(k=6, is_exact=True), 8)
    assert [tuple(trip.road) for trip in trips] == [path for path, _ in best]
    np.testing.assert_allclose([trip.log_prob for trip in trips], [value for _, value in best], rtol=1e-5)


def test_the_published_search_with_k_trips_begins_with_the_published_trip(small: Small) -> None:
    query = Query(0, 6, START_S, 0)
    [(_, [one])] = search(small.paths(), small.city, [query], SearchRule(), 8)
    [(_, several)] = search(small.paths(), small.city, [query], SearchRule(k=4), 8)
    assert several[0].road == one.road and several[0].time_s == one.time_s
    assert len({tuple(trip.road) for trip in several}) == 4
    assert [trip.log_prob for trip in several] == sorted((trip.log_prob for trip in several), reverse=True)


def test_equal_paths_stay_in_the_order_of_the_heap() -> None:
    """Nodes compare by their number alone, like the entries of the published heap."""
    nodes = [Node(1.0) for _ in range(20)]
    heap: list[Node] = []
    for node in nodes:
        heapq.heappush(heap, node)

    class Entry:
        def __init__(self, key: float):
            self.key = key

        def __lt__(self, other: "Entry") -> bool:
            return self.key < other.key

    entries, plain = [Entry(1.0) for _ in range(20)], []
    for entry in entries:
        heapq.heappush(plain, entry)
    order = [next(i for i, n in enumerate(nodes) if n is node) for node in (heapq.heappop(heap) for _ in range(20))]
    assert order == [entries.index(entry) for entry in (heapq.heappop(plain) for _ in range(20))]


def generated(small: Small, queries: list[Query], **options) -> list[list[Trip]]:
    generator = TripGenerator(small.paths(), small.city.network, GenerationOptions(**options), MAX_LEN)
    found = dict(generator.trips(queries))
    return [found[place] for place in range(len(queries))]


@pytest.mark.parametrize("method", ["search", "exact", "greedy", "sample"])
def test_special_queries(small: Small, method: str) -> None:
    queries = [
        Query(3, 3, START_S, 0),
        Query(0, 8, START_S, 1),
        Query(7, 0, START_S, 2),
        Query(6, 6, START_S, 3),
    ]
    trips = [trip for [trip] in generated(small, queries, method=method)]
    assert [trip.status for trip in trips] == ["reached", "unreachable", "unreachable", "reached"]
    assert [trip.road for trip in trips] == [[3], [0], [7], [6]]
    assert all(trip.expansions == 0 and trip.time_s == [START_S] for trip in trips)
    assert str([trip.log_prob for trip in trips]) == "[0.0, 0.0, 0.0, 0.0]"


def test_the_walk_ends_at_a_dead_end_or_at_the_limit(small: Small) -> None:
    after = small.next_of(Query(4, 0, START_S, 0))
    best = max(after((4,)).items(), key=lambda item: item[1])[0]
    # Road 4 leads to 6, which leads to itself for ever, and to the dead end 7; from neither is there a way to 7 or 6.
    target = 7 if best == 6 else 6
    [[trip]] = generated(small, [Query(4, target, START_S, 0)], method="greedy", max_expansions=9)
    if best == 6:
        assert (trip.road, trip.status) == ([4] + [6] * 9, "limit")
    else:
        assert (trip.road, trip.status) == ([4, 7], "dead_end")


def test_hours_over_midnight_and_weekends_are_those_of_the_path(small: Small) -> None:
    """The time of day is that of each road, the weekend that of the start; a start at another time is another path."""
    starts = [START_S, START_S + 2 * 86_400, START_S + 16 * 3600 - 5, START_S + 3600 * 7]
    trips = [trip for [trip] in generated(small, [Query(0, 6, s, i) for i, s in enumerate(starts)])]
    assert len({trip.log_prob for trip in trips}) == len(trips)
    assert all(trip.time_s[0] == start for trip, start in zip(trips, starts, strict=True))
    assert all(np.all(np.diff(trip.time_s) >= 0) for trip in trips)


def test_roads_without_time_are_allowed(small: Small) -> None:
    """A prediction below half a second, or of less than none, is 0 s."""
    paths = PathModel(small.model, small.city.network, TimeStatistics(-4.0, 0.1))
    [(_, [trip])] = search(paths, small.city, [Query(0, 6, START_S, 0)], SearchRule(), 4)
    assert trip.time_s == [START_S] * len(trip.road)


def test_slots_are_given_back(small: Small) -> None:
    paths = small.paths()
    queries = [Query(0, 6, START_S + i, i) for i in range(30)]
    for rule in (SearchRule(), SearchRule(k=3, is_exact=True)):
        search(paths, small.city, queries, rule, 4)
    assert len(paths._free) == len(set(paths._free)) == paths._model.slots
