"""What the model says about a path that grows road by road is what it says about the whole path at once."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from scripts import MINI_CITY

from models.hoser import HOSER
from utils.config import load_config
from utils.data.dataset import City, load_city
from utils.data.loader import BatchLoader, RoadTables
from utils.data.trips import TimeStatistics, Trips, candidate_index
from utils.generation.paths import Node, PathModel, Query

STATISTICS = TimeStatistics(3.1, 0.8)
SATURDAY_NIGHT_S = 1446940740  # 2015-11-07T23:59:00Z


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> City:
    folder = shutil.copytree(MINI_CITY, tmp_path_factory.mktemp("paths") / "Mini")
    config = load_config("Mini", overrides=["road_network_encoder_config.zone_id_num_embeddings=8"])
    return load_city("Mini", config, folder)


@pytest.fixture(scope="module")
def model(city: City) -> HOSER:
    """With the published sizes."""
    torch.manual_seed(0)
    config = load_config("Mini", overrides=["road_network_encoder_config.zone_id_num_embeddings=8"])
    return HOSER(config, city.features).eval()


def random_walk(city: City, rng: np.random.Generator, roads: int) -> list[int]:
    """Roads that follow each other."""
    network = city.network
    path = [int(rng.integers(network.num_roads))]
    while len(path) < roads:
        after = network.reach_road[network.reach_ptr[path[-1]] : network.reach_ptr[path[-1] + 1]]
        path = [*path, int(rng.choice(after))] if len(after) else [int(rng.integers(network.num_roads))]
    return path


def as_trips(city: City, roads: list[list[int]], times: list[list[int]]) -> Trips:
    road, offset = np.concatenate(roads).astype(np.int32), np.cumsum([0, *map(len, roads)])
    label = [candidate_index(city.network, np.array(path[:-1]), np.array(path[1:])) for path in roads]
    return Trips(
        offset=offset,
        road_id=road,
        time_s=np.concatenate(times),
        label=np.concatenate([[*some, 0] for some in label]).astype(np.int32),
    )


def grown(paths: PathModel, roads: list[list[int]], times: list[list[int]]) -> dict[tuple[int, int], Node]:
    """Every path asked about road by road, all together; its node at each place. The slots are given back."""
    queries = [Query(path[0], path[-1], time[0], i) for i, (path, time) in enumerate(zip(roads, times, strict=True))]
    nodes, current = {}, {i: paths.start(query) for i, query in enumerate(queries)}
    for place in itertools.count():
        current = {i: node for i, node in current.items() if place < len(roads[i]) - 1}
        if not current:
            break
        paths.extend(list(current.values()), [queries[i] for i in current])
        for i, node in current.items():
            nodes[i, place] = node
            current[i] = node.next.node(node.next.rows()[roads[i][place + 1]], node)
            current[i].time_s = times[i][place + 1]
    paths.release([node.slot for node in nodes.values()])
    return nodes


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "mkl"), [(0, True), (1, False)])
def test_a_path_that_grows_gives_what_the_whole_path_gives(
    seed: int, mkl: bool, city: City, model: HOSER, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mkl:  # as with other processors and on a GPU
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    rng = np.random.default_rng(seed)
    lengths = [2, 3, 90, *rng.integers(2, 40, size=60)]
    roads = [random_walk(city, rng, int(length)) for length in lengths]
    # Over midnight, on weekends and on weekdays; steps of 0 s among them.
    times = [
        (SATURDAY_NIGHT_S + 86_400 * i + np.cumsum(rng.integers(0, 70, len(p)))).tolist() for i, p in enumerate(roads)
    ]
    loader = BatchLoader(as_trips(city, roads, times), RoadTables.from_network(city.network), STATISTICS, len(roads))
    paths = PathModel(model, city.network, STATISTICS)
    grown(paths, roads[::-1], times[::-1])  # so that slots are used again
    nodes = grown(paths, roads, times)
    batch = loader.batch(np.arange(len(roads)))
    with torch.no_grad():
        whole = model(batch, model.embed_network())
    first_step = np.cumsum([0, *batch.trip_len.tolist()])
    for row, trip in enumerate(batch.trip_index.tolist()):
        for place in range(len(roads[trip]) - 1):
            expected = batch.step_of_candidate == first_step[row] + place
            after = nodes[trip, place].next
            answers, own = after.answers, slice(after.begin, after.end)
            assert answers.road[own] == batch.candidate_road_id[expected].tolist()
            np.testing.assert_allclose(answers.logit[own], whole.logits[expected], rtol=0, atol=2e-6)
            log_time = whole.time_pred[expected].double() * STATISTICS.std + STATISTICS.mean
            np.testing.assert_allclose(answers.log_time[own], log_time, rtol=0, atol=2e-6)


def test_log_probabilities_add_up_along_a_path(city: City, model: HOSER) -> None:
    rng = np.random.default_rng(9)
    path = random_walk(city, rng, 12)
    nodes = grown(PathModel(model, city.network, STATISTICS), [path], [list(range(0, 120, 10))])
    total = 0.0
    for place in range(len(path) - 1):
        after = nodes[0, place].next
        own = slice(after.begin, after.end)
        log_prob = torch.tensor(after.answers.logit[own]).log_softmax(0)
        np.testing.assert_allclose(after.answers.log_prob[own], total + log_prob.numpy(), rtol=0, atol=5e-6)
        total += float(log_prob[after.rows()[path[place + 1]] - after.begin])
