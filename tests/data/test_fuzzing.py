"""Readers of text files: whatever stands in them, the result is right or the error is clear."""

import csv
import io
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz import DEADLINE_MS, MAX_MESSAGE, mutated, result_or_error
from helpers import error_of, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import MINI_CITY, MINI_CONFIG

from utils.config import config_to_dict, load_config
from utils.data.dataset import load_city
from utils.data.road_network import RoadNetwork, read_road_network
from utils.data.trips import read_trips
from utils.data.zones import ZONE_KEY, read_partition, read_transitions
from utils.distillation.teacher_file import read_vocab

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
fuzz = settings(max_examples=100, deadline=DEADLINE_MS, suppress_health_check=[HealthCheck.function_scoped_fixture])


def lines_of(name: str, count: int) -> bytes:
    """The first lines of a file of the mini city."""
    return b"".join((MINI_CITY / name).read_bytes().splitlines(keepends=True)[:count])


GEO, REL = (MINI_CITY / "roadmap.geo").read_bytes(), (MINI_CITY / "roadmap.rel").read_bytes()
GEO_HEAD, TRIPS, PARTITION = lines_of("roadmap.geo", 9), lines_of("val.csv", 9), lines_of("road_network_partition", 121)
MATRIX = (MINI_CITY / "zone_trans_mat.npy").read_bytes()
VOCAB = json.dumps({"PAD": 0, "EOT": 1, "SOT": 2, **{str(cell): cell + 3 for cell in range(9)}}).encode()


@pytest.fixture(scope="module")
def mini_network() -> RoadNetwork:
    return read_road_network(MINI_CITY)


def rows_of(content: bytes) -> list[dict[str, str]]:
    """Another reader of CSV than ours."""
    csv.field_size_limit(1 << 24)
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    return [row for row in rows if any((value or "").strip() for value in row.values())]  # but blank lines


# Roads ---------------------------------------------------------------------------------------------------------


@fuzz
@given(mutated(GEO_HEAD))
def test_roadmap_geo(workplace: Path, content: bytes) -> None:
    (workplace / "roadmap.geo").write_bytes(content)
    write_lines(workplace / "roadmap.rel", "origin_id,destination_id", "0,0")
    network = result_or_error(lambda: read_road_network(workplace), "roadmap.geo")
    if network is not None:
        rows = rows_of(content)
        assert network.num_roads == len(rows)
        lines = [json.loads(row["coordinates"]) for row in rows]
        assert np.array_equal(network.end, np.array([line[-1] for line in lines], dtype=float))
        lengths = np.log1p(np.array([float(row["length"]) for row in rows], dtype=np.float32))
        order = np.argsort(lengths, kind="stable")
        assert (np.diff(network.road_attr_len[order]) >= 0).all()
        for name in ("center", "road_attr_len", "road_attr_lon", "road_attr_lat", "intersection_attr"):
            assert np.isfinite(getattr(network, name)).all(), name
        points = np.concatenate([np.array(line, dtype=float) for line in lines])
        assert np.array_equal(network.bounds, np.stack([points.min(axis=0), points.max(axis=0)]))


@fuzz
@given(mutated(lines_of("roadmap.rel", 40)))
def test_roadmap_rel(workplace: Path, content: bytes) -> None:
    (workplace / "roadmap.geo").write_bytes(GEO)
    (workplace / "roadmap.rel").write_bytes(content)
    network = result_or_error(lambda: read_road_network(workplace), "roadmap.rel")
    if network is not None:
        reach: dict[int, list[int]] = {}
        for row in rows_of(content):
            reach.setdefault(int(row["origin_id"]), []).append(int(row["destination_id"]))
        for road in range(network.num_roads):
            ours = network.reach_road[network.reach_ptr[road] : network.reach_ptr[road + 1]]
            assert ours.tolist() == reach.get(road, [])


# Trips ---------------------------------------------------------------------------------------------------------


def parse_trip(row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Roads and times of a row, by the plain means."""
    roads, times = (row[name].strip().removeprefix("[").removesuffix("]") for name in ("rid_list", "time_list"))
    moments = [datetime.strptime(text.strip(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) for text in times.split(",")]
    return [int(text) for text in roads.split(",")], [int(moment.timestamp()) for moment in moments]


@fuzz
@given(mutated(TRIPS), st.sampled_from(("error", "skip")))
def test_trips(workplace: Path, mini_network: RoadNetwork, content: bytes, on_bad_trip: str) -> None:
    path = workplace / "val.csv"
    path.write_bytes(content)
    trips = result_or_error(lambda: read_trips(path, mini_network, on_bad_trip), "val.csv")
    if trips is None:
        return
    for i in range(len(trips)):
        part = slice(trips.offset[i], trips.offset[i + 1])
        roads, times, ranks = trips.road_id[part], trips.time_s[part], trips.label[part]
        assert len(roads) >= 2
        assert (np.diff(times) >= 0).all()
        for road, rank, following in zip(roads, ranks, roads[1:], strict=False):
            assert mini_network.reach_road[mini_network.reach_ptr[road] + rank] == following
    if trips.skipped == 0:
        rows = rows_of(content)
        assert len(trips) == len(rows)
        for i, row in enumerate(rows):
            part = slice(trips.offset[i], trips.offset[i + 1])
            assert (trips.road_id[part].tolist(), trips.time_s[part].tolist()) == parse_trip(row)


# Zones ---------------------------------------------------------------------------------------------------------


@fuzz
@given(mutated(PARTITION))
def test_road_network_partition(workplace: Path, content: bytes) -> None:
    path = workplace / "road_network_partition"
    path.write_bytes(content)
    zones = result_or_error(lambda: read_partition(path, 121, 8), "road_network_partition")
    if zones is not None:
        assert zones.tolist() == [int(line) for line in content.decode("utf-8-sig").rstrip().split("\n")]
        assert 0 <= zones.min() <= zones.max() < 8


@fuzz
@given(mutated(MATRIX))
def test_zone_trans_mat(workplace: Path, content: bytes) -> None:
    path = workplace / "zone_trans_mat.npy"
    path.write_bytes(content)
    matrix = result_or_error(lambda: read_transitions(path, np.arange(8), 8), "zone_trans_mat.npy")
    if matrix is not None:
        assert matrix.shape == (8, 8)
        assert (matrix >= 0).all()
        assert np.array_equal(matrix, np.load(io.BytesIO(content)))


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(1000000, 1000000)", "(8, 1000000000000)", "(-1, 8)"])
def test_a_matrix_that_claims_to_be_huge(shape: str, workplace: Path) -> None:
    path = workplace / "zone_trans_mat.npy"
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}"
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117).encode() + b"\n" + b"\0" * 512
    )
    assert result_or_error(lambda: read_transitions(path, np.arange(8), 8), "zone_trans_mat.npy") is None


# Configuration -------------------------------------------------------------------------------------------------


@fuzz
@given(mutated(MINI_CONFIG.encode()))
def test_configuration(workplace: Path, content: bytes) -> None:
    path = workplace / "Mini.yaml"
    path.write_bytes(content)
    config = result_or_error(lambda: load_config("Mini", path), "Mini.yaml")
    if config is not None:
        optimizer = config.optimizer_config
        assert optimizer.batch_size >= 1
        assert math.isfinite(optimizer.learning_rate)
        json.dumps(config_to_dict(config))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "optimizer_config: &o\n  max_epoch: *o\n",
        "optimizer_config:\n  max_epoch: " + "[" * 5000 + "]" * 5000,
        "optimizer_config:\n  max_epoch: " + "9" * 6000,
        "optimizer_config:\n  learning_rate: " + "9" * 6000,
        f"wandb:\n  run_name: {'x' * 100_000}\n",
        f"wandb:\n  tags: [{'x' * 100_000}]\n",
        f"{'x' * 100_000}: 1\n",
        "distill:\n  teacher: !!python/object/apply:os.system [echo]\n",
        BOMB.replace("a19:", "optuna:\n  search_space:\n    distill.lambda: {choices: *a18}\na19:"),
    ],
    ids=[
        "bomb",
        "circle",
        "deep",
        "long integer",
        "long number",
        "long text",
        "long tag",
        "long key",
        "object",
        "space",
    ],
)
def test_configurations_that_mean_harm(text: str, workplace: Path) -> None:
    path = workplace / "Mini.yaml"
    path.write_text(text)
    assert result_or_error(lambda: load_config("Mini", path), "Mini.yaml") is None


@pytest.mark.parametrize(
    "value", ["[" * 5000, "9" * 6000, "&a [*a]", "{a: &b [1], c: *b}", "\0", "!!python/name:os.system"]
)
def test_overrides_that_mean_harm(value: str, workplace: Path) -> None:
    message = error_of(load_config, "Mini", None, [f"optimizer_config.max_epoch={value}"])
    assert "optimizer_config.max_epoch" in message
    assert len(message) < MAX_MESSAGE
    assert message.isprintable()


# Vocabulary ----------------------------------------------------------------------------------------------------


@fuzz
@given(mutated(VOCAB))
def test_vocab_json(workplace: Path, content: bytes) -> None:
    path = workplace / "vocab.json"
    path.write_bytes(content)
    vocab = result_or_error(lambda: read_vocab(path), "vocab.json")
    if vocab is not None:
        assert vocab == json.loads(content)


# A city --------------------------------------------------------------------------------------------------------


@settings(fuzz, max_examples=40)
@given(st.sampled_from(("roadmap.geo", "roadmap.rel", "road_network_partition", "zone_trans_mat.npy")), st.data())
def test_a_city_with_one_broken_file(workplace: Path, name: str, data: Any) -> None:
    """What each reader lets pass, the others and the features must be able to use."""
    folder = workplace / "data" / "Mini"
    folder.mkdir(parents=True, exist_ok=True)
    for path in MINI_CITY.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(data.draw(mutated((MINI_CITY / name).read_bytes())))
    config = load_config(overrides=[f"{ZONE_KEY}=8"])
    city = result_or_error(lambda: load_city("Mini", config), "data/Mini")
    if city is not None:
        for name in ("road_attr_len", "road_attr_lon", "road_attr_lat", "intersection_attr", "zone_edge_weight"):
            assert np.isfinite(getattr(city.features, name).numpy()).all(), name
        assert int(city.features.road_edge_index.max()) < city.network.num_roads
