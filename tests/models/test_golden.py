"""The model computes what the published implementation computed (tests/golden, and ../shared where it is)."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from published import initial_attention_biases

from models.batch import Batch
from models.hoser import HOSER
from utils.config import PROJECT, Config, load_config
from utils.data.dataset import City, load_city
from utils.data.loader import BatchLoader, RoadTables
from utils.data.trips import TimeStatistics
from utils.runtime.precision import Precision
from utils.training.engine import evaluate, make_optimizer
from utils.training.losses import HOSERLoss
from utils.training.schedule import Schedule

SHARED = PROJECT.parent / "shared"
CPU = torch.device("cpu")

MINI_SIZES = [
    "road_network_encoder_config.road_id_emb_dim=16",
    *(f"road_network_encoder_config.{part}_emb_dim=4" for part in ("len", "type", "lon", "lat")),
    "road_network_encoder_config.intersection_emb_dim=32",
    "road_network_encoder_config.zone_id_emb_dim=32",
    "road_network_encoder_config.zone_id_num_embeddings=8",
    "trajectory_encoder_config.hidden_dim=32",
    "navigator_config.hidden_dim=32",
]


@dataclass
class Golden:
    """One set of golden numbers with the city that they were computed on."""

    folder: Path
    config: Config
    city: City
    loader: BatchLoader  # train
    seed: int

    def __post_init__(self) -> None:
        self.batch: Batch = self.loader.batch(np.arange(self.loader.batch_size))
        # Where each of our packed steps and candidates stands in the golden padded arrays.
        self.trip = self.batch.trip_index[self.batch.trip_of_step].numpy()
        self.place = np.concatenate([np.arange(n) for n in self.batch.trip_len.tolist()])
        step = self.batch.step_of_candidate.numpy()
        self.candidate = self.trip[step], self.place[step], self.batch.candidate_index.numpy()

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)

    def model(self) -> HOSER:
        """The model with the golden initial weights."""
        state = torch.load(self.folder / "state_dict.pth")
        num_types = len(self.city.network.highway_classes)
        biases = initial_attention_biases(self.config, self.seed, self.city.network.num_roads, num_types)
        for layer, bias in enumerate(biases):
            state[f"trajectory_encoder.transformer.h.{layer}.attn.c_attn.bias"] = bias
        model = HOSER(self.config, self.city.features)
        model.load_state_dict(state)
        return model


def _golden(folder: Path, data: Path, overrides: list[str], batch_size: int, seed: int) -> Golden:
    config = load_config("Beijing", overrides=[*overrides, f"optimizer_config.batch_size={batch_size}"])
    city = load_city("golden", config, data)
    train = city.trips("train")
    loader = BatchLoader(train, RoadTables.from_network(city.network), TimeStatistics.from_trips(train), batch_size)
    return Golden(folder, config, city, loader, seed)


@pytest.fixture(scope="module", params=["hoser_mini", "hoser_tiny"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    if request.param == "hoser_mini":
        folder, data, overrides, batch_size, seed = "tests/golden", "tests/golden/mini_city", MINI_SIZES, 12, 5
    else:
        overrides = ["road_network_encoder_config.zone_id_num_embeddings=20"]
        folder, data, batch_size, seed = "../shared/golden", "../shared/data/Tiny", 16, 7
        if not (PROJECT / folder / request.param).is_dir() or not (PROJECT / data).is_dir():
            pytest.skip("needs ../shared/golden and ../shared/data/Tiny")
    # Read from a copy: the cache of parsed trips is written beside the data.
    copy = tmp_path_factory.mktemp(request.param)
    for path in (PROJECT / data).iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return _golden(PROJECT / folder / request.param, copy, overrides, batch_size, seed)


def test_road_and_zone_features_are_the_published_ones(golden: Golden) -> None:
    expected = golden.arrays("features")
    for name in ("road_attr_len", "road_attr_lon", "road_attr_lat", "intersection_attr", "zone_edge_weight"):
        np.testing.assert_allclose(getattr(golden.city.features, name), expected[name], rtol=0, atol=1e-6)
    for name in ("road_attr_type", "road_edge_index", "zone_edge_index", "road2zone"):
        np.testing.assert_array_equal(getattr(golden.city.features, name), expected[name])
    assert golden.loader.statistics.mean == pytest.approx(expected["timestamp_label_log1p_mean"], abs=1e-6)
    assert golden.loader.statistics.std == pytest.approx(expected["timestamp_label_log1p_std"], abs=1e-6)


def test_zone_transitions_are_counted_as_published(golden: Golden) -> None:
    from utils.data.zones import count_transitions

    counted = count_transitions(golden.city.features.road2zone.numpy(), golden.city.trips("train"))
    np.testing.assert_array_equal(counted, np.load(golden.city.folder / "zone_trans_mat.npy"))


def test_the_inputs_of_a_batch_are_the_published_ones(golden: Golden) -> None:
    batch, expected = golden.batch, golden.arrays("batch")
    steps = golden.trip, golden.place
    np.testing.assert_array_equal(batch.road_id, expected["trace_road_id"][steps])
    np.testing.assert_array_equal(batch.label, expected["road_label"][steps])
    np.testing.assert_array_equal(batch.candidate_len, expected["candidate_len"][steps])
    np.testing.assert_array_equal(batch.candidate_road_id, expected["candidate_road_id"][golden.candidate])
    np.testing.assert_array_equal(batch.trip_len, expected["trace_len"][batch.trip_index])
    np.testing.assert_array_equal(batch.destination_road_id, expected["destination_road_id"][batch.trip_index])
    for ours, theirs in (
        (batch.temporal_info, expected["temporal_info"][steps]),
        (batch.log_time, expected["timestamp_label"][steps]),
        (batch.metric_distance, expected["metric_dis"][golden.candidate]),
        (batch.metric_angle, expected["metric_angle"][golden.candidate]),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_the_relative_matrices_of_a_batch_are_the_published_ones(golden: Golden) -> None:
    batch, expected = golden.batch, golden.arrays("batch")
    row = 0
    for group in batch.groups:
        for i in range(group.num_trips):
            trip, length = batch.trip_index[row], int(batch.trip_len[row])
            for ours, name in (
                (group.distance, "trace_distance_mat"),
                (group.time_interval, "trace_time_interval_mat"),
            ):
                theirs = expected[name][trip, :length, :length]
                np.testing.assert_allclose(ours[i, :length, :length], theirs, rtol=0, atol=1e-6)
            row += 1
    assert row == len(batch.trip_len)


@pytest.mark.slow
def test_logits_times_and_losses_are_the_published_ones(golden: Golden) -> None:
    model, expected = golden.model(), golden.arrays("forward")
    prediction = model(golden.batch)
    np.testing.assert_allclose(prediction.logits.detach(), expected["logits"][golden.candidate], rtol=0, atol=2e-5)
    np.testing.assert_allclose(
        prediction.time_pred.detach(), expected["time_pred"][golden.candidate], rtol=0, atol=2e-5
    )
    terms = HOSERLoss(golden.loader.statistics)(prediction, golden.batch)
    assert terms["loss_next_step"].item() == pytest.approx(expected["loss_next_step"], abs=1e-5)
    assert terms["loss_time_pred"].item() == pytest.approx(expected["loss_time_pred"], abs=1e-5)


def test_embeddings_are_the_published_ones(golden: Golden) -> None:
    model, expected = golden.model(), golden.arrays("forward")
    with torch.no_grad():
        road, zone = model.embed_network()
    np.testing.assert_allclose(road[: len(expected["road_embedding"])], expected["road_embedding"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(zone, expected["zone_embedding"], rtol=0, atol=2e-5)


def test_gradients_are_the_published_ones(golden: Golden) -> None:
    model, expected = golden.model(), golden.arrays("gradients")
    HOSERLoss(golden.loader.statistics)(model(golden.batch), golden.batch)["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {name.removeprefix("norm/") for name in expected if name.startswith("norm/")} == set(gradients)
    for name, value in expected.items():
        kind, parameter = name.split("/")
        ours = gradients[parameter].norm() if kind == "norm" else gradients[parameter]
        # Of a constant added to a row before a softmax: truly zero, so both are rounding noise.
        atol = 1e-6 if parameter.endswith("relative_position_emb_k.bias") else 1e-4 * np.abs(value).max()
        np.testing.assert_allclose(ours, value, rtol=1e-4, atol=atol, err_msg=name)


@pytest.mark.slow
def test_a_training_curve_and_an_evaluation_are_the_published_ones(golden: Golden) -> None:
    expected, loader = golden.arrays("curve"), golden.loader
    steps, size = int(expected["steps"]), int(expected["batch_size"])
    wrap = {"hoser_mini": 120, "hoser_tiny": 600}[golden.folder.name]
    model = golden.model().train()
    optimizer = make_optimizer(model, golden.config.optimizer_config)
    schedule = Schedule(base=0.001, total_steps=steps, warmup_steps=0.1 * steps)
    for step in range(steps):
        batch = loader.batch((size * step + np.arange(size)) % wrap)
        terms = HOSERLoss(loader.statistics)(model(batch), batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = schedule.lr_at(step + 1)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert rate == pytest.approx(expected["learning_rate"][step], rel=1e-9, abs=1e-15)
        assert terms["loss_next_step"].item() == pytest.approx(expected["loss_next_step"][step], abs=1e-3)
        assert terms["loss_time_pred"].item() == pytest.approx(expected["loss_time_pred"][step], abs=1e-3)
        assert norm.item() == pytest.approx(expected["grad_norm"][step], rel=1e-2)

    # The golden weights after these steps lack c_attn.bias too; ours, trained alike, stand in for it.
    state = torch.load(golden.folder / "state_dict_trained.pth")
    own = {name: value for name, value in model.state_dict().items() if name.endswith("c_attn.bias")}
    model.load_state_dict(state | own)
    figures = json.loads((golden.folder / "eval.json").read_text())
    val = BatchLoader(golden.city.trips("val"), loader.tables, loader.statistics, figures["batch_size"])
    metrics = evaluate(model, val, Precision("float32", CPU), "test")
    assert val.num_trips == figures["val_trips"]
    assert round(metrics.next_step_acc * figures["steps"]) == figures["correct"]
    assert metrics.next_step_acc == pytest.approx(figures["val_next_step_acc"], abs=1e-9)
    assert metrics.time_pred_mape == pytest.approx(figures["val_time_pred_mape"], abs=1e-3)


def test_a_published_state_dict_loads_and_its_dead_keys_are_not_saved_again(golden: Golden) -> None:
    model = golden.model()
    state = model.state_dict()
    h = golden.config.navigator_config.hidden_dim
    published = {
        **state,
        "navigator.time_estimator.0.weight": torch.zeros(64, 3 * h),
        "navigator.time_estimator.0.bias": torch.zeros(64),
        "navigator.time_estimator.2.weight": torch.zeros(1, 64),
        "navigator.time_estimator.2.bias": torch.zeros(1),
        "trajectory_encoder.transformer.h.0.attn.bias": torch.ones(1, 1, 20, 20).tril(),
        "trajectory_encoder.transformer.h.1.attn.bias": torch.ones(1, 1, 20, 20).tril(),
    }
    model.load_state_dict(published)
    assert set(model.state_dict()) == set(state)
    stored = torch.load(golden.folder / "state_dict.pth")
    assert set(stored) - set(state) == {name for name in stored if name.startswith("navigator.time_estimator.")}


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_any_other_missing_or_unexpected_key_is_an_error(golden: Golden, change: str) -> None:
    model = golden.model()
    state = dict(model.state_dict())
    if change == "missing":
        del state["navigator.v_proj.weight"]
    else:
        state["navigator.time_estimator_linear_4.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="(?i)" + change):
        model.load_state_dict(state)
