"""On a GPU: the numbers of the CPU, nothing that waits for the GPU in a training step, and every program.

Without a GPU these are skipped: `uv run pytest -m gpu` is the command for a machine that has one.
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import MINI_CITY, Script, make_mini_project, make_mini_teacher, mini, run
from torch import Tensor

import models.hoser
from models.batch import Batch, Prediction
from models.hoser import HOSER
from utils.benchmark.gpu import MEANINGS, FirstBatches, measure_gpu
from utils.config import Config, load_config
from utils.data import loader
from utils.data.dataset import City, load_city
from utils.data.loader import BatchLoader, make_loaders
from utils.data.trips import TimeStatistics
from utils.distillation.kl_loss import load_distillation, measure_teacher
from utils.generation.generator import TripGenerator
from utils.generation.options import GenerationOptions
from utils.generation.paths import PathModel, Trip
from utils.generation.queries import sample_queries
from utils.runtime.precision import Precision
from utils.training.cuda_graph import RecordedModel
from utils.training.engine import Learner, evaluate, train_epoch
from utils.training.losses import HOSERLoss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")]

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SIZES = ["road_network_encoder_config.zone_id_num_embeddings=8", "optimizer_config.batch_size=32"]


@pytest.fixture(scope="module")
def config() -> Config:
    """The published sizes."""
    return load_config("Mini", overrides=SIZES)


@pytest.fixture(scope="module")
def city(config: Config, tmp_path_factory: pytest.TempPathFactory) -> City:
    folder = shutil.copytree(MINI_CITY, tmp_path_factory.mktemp("gpu") / "Mini")
    return load_city("Mini", config, folder)


@pytest.fixture(scope="module")
def model(config: Config, city: City) -> HOSER:
    torch.manual_seed(0)
    return HOSER(config, city.features)


def far(found: Tensor, expected: Tensor) -> float:
    """The relative distance of two tensors."""
    expected = expected.double().cpu()
    return float((found.double().cpu() - expected).norm() / expected.norm().clamp(min=1e-12))


def one_step(model: HOSER, train: BatchLoader, precision: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of the first batch, and the gradients of its loss."""
    batch = train.batch(np.arange(train.batch_size))
    model.zero_grad()
    with Precision(precision, train.device).autocast():
        prediction = model(batch)
        loss = HOSERLoss(train.statistics)(prediction, batch)["loss"]
    loss.backward()
    return prediction.logits.detach(), {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("network", ["whole", "touched roads"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_is_that_of_the_cpu(
    network: str, precision: str, model: HOSER, city: City, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    if network == "touched roads":  # as on large networks
        monkeypatch.setattr(models.hoser, "WHOLE_NETWORK_ROADS", 0)
    expected, gradients = one_step(copy.deepcopy(model), make_loaders(city, config, CPU)["train"], "float32")
    found, ours = one_step(copy.deepcopy(model).to(GPU), make_loaders(city, config, GPU)["train"], precision)
    assert far(found, expected) < (2e-6 if precision == "float32" else 0.02)
    total = torch.cat([value.flatten() for value in gradients.values()])
    assert far(torch.cat([ours[name].flatten() for name in gradients]), total) < (
        2e-5 if precision == "float32" else 0.05
    )
    if precision == "float32":
        for name, value in gradients.items():
            assert far(ours[name], value) < 1e-3 or value.norm() < 1e-6 * total.norm(), name


def test_batches_are_those_of_the_cpu(city: City, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for rule in (loader.GROUP_RATIO, loader.GROUP_PAIRS):
        monkeypatch.setitem(rule, "cuda", rule["cpu"])
    loaders = [make_loaders(city, config, device)["train"] for device in (GPU, CPU)]
    pairs = list(zip(*(each.shuffled(3, 1) for each in loaders), strict=True))
    assert len(pairs) == loaders[0].num_batches
    for ours, theirs in pairs:
        for found, expected in [(ours, theirs), *zip(ours.groups, theirs.groups, strict=True)]:
            for name, value in vars(expected).items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(getattr(found, name).cpu(), value, rtol=1e-6, atol=1e-6)
                elif name != "groups":
                    assert getattr(found, name) == value


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("teacher", [False, True])
def test_no_step_waits_for_the_gpu(teacher: bool, precision: str, tmp_path: Path) -> None:
    folder = make_mini_teacher(make_mini_project(tmp_path))
    settings = [f"training.precision={precision}", "optimizer_config.batch_size=5", "distill.grid_size=0.001"]
    settings += [f"distill.teacher={folder}/save/Mini/teacher/weights.pt", "distill.downsample=1"]
    config = load_config("Mini", folder / "Mini.yaml", settings)
    city = load_city("Mini", config, folder / "data" / "Mini")
    loaders = make_loaders(city, config, GPU)
    learner = Learner.from_config(HOSER(config, city.features).to(GPU), config, loaders["train"])
    loss_function = HOSERLoss(loaders["train"].statistics)
    if teacher:
        term = load_distillation(config.distill, "Mini", city, loaders).term
        loss_function = HOSERLoss(loaders["train"].statistics, term, 0.1)
    list(train_epoch(learner, loaders["train"], loss_function, 0, 0, 0))  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=GPU).item()
        epoch = train_epoch(learner, FirstBatches(loaders["train"], 10), loss_function, 0, 1, 0)
        with pytest.raises(StopIteration):
            next(epoch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_learner(city: City, *settings: str, device: torch.device = GPU) -> tuple[Learner, BatchLoader]:
    """A new model, ready for training steps."""
    config = load_config("Mini", overrides=[*SIZES, *settings])
    train = make_loaders(city, config, device)["train"]
    learner = Learner.from_config(HOSER(config, city.features).to(device), config, train)
    learner.prepare()
    return learner, train


def is_recorded(learner: Learner, train: BatchLoader) -> bool:
    """Whether its steps replay CUDA graphs: of most batches, and of the last one, which has fewer trips."""
    if not isinstance(learner.network, RecordedModel):
        return False
    replayed = [learner.network.replays(batch) for epoch in range(5) for batch in train.shuffled(0, epoch)]
    return sum(replayed) > 0.8 * len(replayed) and any(replayed[train.num_batches - 1 :: train.num_batches])


def step_of(network: Callable[[Batch], Prediction], learner: Learner, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the gradients of a loss; copies, since a recording's memory is overwritten."""
    parameters = list((learner.model if network is learner.network else network).parameters())
    with learner.precision.autocast():
        prediction = network(batch)
        loss = prediction.logits.float().square().mean() + prediction.time_pred.float().square().mean()
    return prediction.logits.detach().clone(), [grad.clone() for grad in torch.autograd.grad(loss, parameters)]


def check_that_replays_are_the_model(learner: Learner, plain: HOSER, train: BatchLoader) -> None:
    plain.load_state_dict(learner.model.state_dict())
    rough, replayed = learner.precision.name != "float32", set()
    for batch in (next(train.shuffled(3, 0)), *list(train.shuffled(4, 0))[-2:]):  # the last has fewer trips
        expected, gradients = step_of(plain, learner, batch)
        found, ours = step_of(learner.network, learner, batch)
        if learner.network.replays(batch):
            replayed.add(len(batch.trip_len))
            memory = [learner.network(batch).logits.data_ptr() for _ in range(2)]
            assert memory[0] == memory[1]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert far(found, expected) < (0.02 if rough else 1e-5)
        flat = [torch.cat([gradient.flatten() for gradient in each]) for each in (ours, gradients)]
        assert far(*flat) < (0.05 if rough else 1e-4)
    assert len(replayed) == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_step_is_the_model_s(precision: str, city: City, messages: list[str]) -> None:
    """Of weights that have changed since: by training, and by loading others; and after an evaluation."""
    learner, train = make_learner(city, f"training.precision={precision}")
    assert messages[-1] == "training.cuda_graph: a training step is recorded, and replayed from now on"
    plain, other = (copy.deepcopy(learner.model) for _ in range(2))
    check_that_replays_are_the_model(learner, plain, train)
    before = copy.deepcopy(learner.model.state_dict())
    list(train_epoch(learner, train, HOSERLoss(train.statistics), 0, 0, 0))
    assert not torch.equal(learner.model.navigator.q_proj.weight, before["navigator.q_proj.weight"])
    check_that_replays_are_the_model(learner, plain, train)
    learner.model.load_state_dict(other.state_dict())
    check_that_replays_are_the_model(learner, plain, train)
    evaluate(learner.model, train, learner.precision, "evaluating")
    learner.prepare()
    check_that_replays_are_the_model(learner, plain, train)


@pytest.mark.parametrize("heads", [1, 4])  # with one, three gradients are one memory
def test_an_epoch_of_replayed_steps_trains_as_one_without(heads: int, city: City) -> None:
    weights, losses = [], []
    for recorded in (True, False):
        settings = [f"trajectory_encoder_config.num_heads={heads}", f"training.cuda_graph={str(recorded).lower()}"]
        settings += ["training.precision=float32", "optimizer_config.max_norm=0.1", "optimizer_config.batch_size=8"]
        torch.manual_seed(0)
        learner, train = make_learner(city, *settings)
        assert is_recorded(learner, train) is recorded
        epoch = train_epoch(learner, train, HOSERLoss(train.statistics), 0, 0, 0)
        losses.append([record.losses["loss"] for records in epoch for record in records])
        weights.append(learner.model.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name in ("c_attn.bias", "relative_position_emb_k.bias", "relative_position_emb_v.bias", "c_proj.weight"):
        ours, plain = (each[f"trajectory_encoder.transformer.h.0.attn.{name}"] for each in weights)
        assert far(ours, plain) < 1e-3, name


def test_dropout_is_drawn_anew_in_each_replay(city: City) -> None:
    learner, train = make_learner(city, "trajectory_encoder_config.dropout=0.5")
    batch, found = next(batch for batch in train.shuffled(0, 0) if learner.network.replays(batch)), []
    for seed in (1, None, 1):
        if seed is not None:
            torch.manual_seed(seed)
        found.append(step_of(learner.network, learner, batch)[0])
    assert far(found[1], found[0]) > 0.01
    assert far(found[2], found[0]) < 1e-3


def test_parameters_that_are_frozen_or_not_used_are_left_alone(city: City) -> None:
    """As in a changed model."""
    config = load_config("Mini", overrides=[*SIZES, "training.precision=float32"])
    train = make_loaders(city, config, GPU)["train"]
    model = HOSER(config, city.features)
    model.unused = torch.nn.Parameter(torch.ones(3))
    model.road_network_encoder.road_id_emb.weight.requires_grad = False
    frozen = model.road_network_encoder.road_id_emb.weight.clone()
    learner = Learner.from_config(model.to(GPU), config, train)
    list(train_epoch(learner, train, HOSERLoss(train.statistics), 0, 0, 0))
    assert is_recorded(learner, train)
    assert torch.equal(model.unused.cpu(), torch.ones(3))
    assert torch.equal(model.road_network_encoder.road_id_emb.weight.cpu(), frozen)


@pytest.mark.parametrize("setting", ["optimizer_config.accum_steps=2", "training.cuda_graph=false"])
def test_what_is_not_recorded(setting: str, city: City) -> None:
    """Gradients of several batches add up, which a replay's cannot; and where it is not wanted."""
    learner, train = make_learner(city, setting)
    assert learner.network is learner.model
    assert train.shape is None


def test_where_memory_is_too_little_for_a_recording_training_goes_on(city: City, messages: list[str]) -> None:
    torch.cuda.empty_cache()
    config = load_config("Mini", overrides=SIZES)
    train = make_loaders(city, config, GPU)["train"]
    learner = Learner.from_config(HOSER(config, city.features).to(GPU), config, train)
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(GPU) / total, GPU)  # none for the graph
    try:
        learner.prepare()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    check_that_training_goes_on(learner, train, messages)
    assert any("out of memory" in message for message in messages)


def test_a_changed_model_that_waits_for_the_gpu_trains(
    city: City, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that prints a value."""
    forward = HOSER.forward

    def printing(model: HOSER, batch: Batch, *arguments: object) -> Prediction:
        prediction = forward(model, batch, *arguments)
        print(prediction.logits.max().item())
        return prediction

    monkeypatch.setattr(HOSER, "forward", printing)
    learner, train = make_learner(city)
    check_that_training_goes_on(learner, train, messages)


def check_that_training_goes_on(learner: Learner, train: BatchLoader, messages: list[str]) -> None:
    """After a recording that has failed."""
    assert not is_recorded(learner, train)
    assert sum("training.cuda_graph: a training step cannot be recorded" in message for message in messages) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    for epoch in range(2):
        list(train_epoch(learner, train, HOSERLoss(train.statistics), 0, epoch, 0))
    assert not is_recorded(learner, train)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has one GPU at most")
def test_a_step_is_recorded_on_the_second_gpu(city: City) -> None:
    learner, train = make_learner(city, "training.precision=float32", device=torch.device("cuda", 1))
    list(train_epoch(learner, train, HOSERLoss(train.statistics), 0, 0, 0))
    check_that_replays_are_the_model(learner, copy.deepcopy(learner.model), train)


def test_the_benchmark_says_how_busy_the_gpu_is(model: HOSER, city: City, config: Config) -> None:
    train = make_loaders(city, config, GPU)["train"]
    learner = Learner.from_config(copy.deepcopy(model).to(GPU), config, train)
    figures = measure_gpu(learner, train, HOSERLoss(train.statistics))
    assert set(figures) == set(MEANINGS)
    assert 0 < figures["gpu_busy_share"] <= 1
    assert 0 < figures["gpu_computes_ms"] <= figures["gpu_step_ms"]
    assert figures["gpu_waits_per_step"] == 0
    assert 0 < figures["gpu_launches_per_step"] < figures["gpu_operations_per_step"]


def test_an_evaluation_is_that_of_the_cpu(model: HOSER, city: City, config: Config) -> None:
    found = {}
    for device in (CPU, GPU):
        val = make_loaders(city, config, device)["val"]
        found[device] = evaluate(copy.deepcopy(model).to(device), val, Precision("float32", device), "validating")
    for name, value in vars(found[CPU]).items():
        assert getattr(found[GPU], name) == pytest.approx(value, rel=1e-4)


def test_the_teacher_says_what_it_says_on_the_cpu(tmp_path: Path) -> None:
    folder = make_mini_teacher(make_mini_project(tmp_path))
    metrics = []
    for device in (CPU, GPU):
        settings = [f"distill.teacher={folder}/save/Mini/teacher/weights.pt", "distill.cache=false"]
        settings += ["distill.grid_size=0.001", "distill.downsample=1"]
        config = load_config("Mini", folder / "Mini.yaml", settings)
        city = load_city("Mini", config, folder / "data" / "Mini")
        loaders = make_loaders(city, config, device)
        distillation = load_distillation(config.distill, "Mini", city, loaders)
        metrics.append(measure_teacher(distillation.val_log_probs, distillation.token_of_road, loaders["val"]))
    for name, value in vars(metrics[0]).items():
        assert getattr(metrics[1], name) == pytest.approx(value, rel=2e-3)


@pytest.mark.parametrize("method", ["search", "exact", "greedy", "sample"])
def test_generated_trips_are_those_of_the_cpu(method: str, model: HOSER, city: City) -> None:
    train = city.trips("train")
    queries = sample_queries(train, city.network.num_roads, 40, seed=0)
    options = GenerationOptions(method=method, max_expansions=50 if method == "exact" else 5000)
    found: list[list[Trip]] = []
    for device in (CPU, GPU):
        paths = PathModel(copy.deepcopy(model).to(device), city.network, TimeStatistics.from_trips(train))
        generator = TripGenerator(paths, city.network, options, max_len=60, slots=16)
        found.append([trip for _, [trip] in sorted(generator.trips(queries), key=lambda each: each[0])])
    for ours, theirs in zip(*found, strict=True):
        assert (ours.road, ours.status, ours.expansions) == (theirs.road, theirs.status, theirs.expansions)
        assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-4)
        assert np.abs(np.subtract(ours.time_s, theirs.time_s)).max() <= 1


GRID = ["--set", "distill.grid_size=0.001", "--set", "distill.downsample=1"]
FLOAT32 = ["--set", "training.precision=float32"]
BEST = "save/Mini/seed1/best.pth"


def on_gpu(script: str, *arguments: str, epochs: int = 2) -> list[str]:
    return mini(script, "--cuda", "0", *arguments, "--set", f"optimizer_config.max_epoch={epochs}")


def test_what_a_gpu_has_trained_generates_there_and_is_read_without_one(project: Path) -> None:
    trained = run(on_gpu("train.py", "--seed", "1"), project, timeout_s=300)
    assert trained.returncode == 0, trained.stderr
    assert "on cuda:0" in trained.stderr
    generated = run(on_gpu("tools/generate.py", "--checkpoint", BEST, "--number", "20"), project, timeout_s=300)
    assert generated.returncode == 0, generated.stderr
    reports = []
    for cuda in ("0", "-1"):
        command = mini("tools/evaluate.py", "--cuda", cuda, "--checkpoint", BEST, "--json", f"report_{cuda}.json")
        done = run([*command, *FLOAT32], project, timeout_s=300)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((project / f"report_{cuda}.json").read_text())["total"])
    assert reports[0] == pytest.approx(reports[1], rel=1e-3)


def test_a_teacher_is_trained_and_a_killed_distillation_goes_on(project: Path) -> None:
    sizes = [f"teacher.{name}" for name in ("n_layer=1", "n_head=2", "n_embd=16", "max_epoch=1")]
    sets = [part for size in sizes for part in ("--set", size)]
    teacher = run(mini("tools/train_teacher.py", "--seed", "1", "--cuda", "0", *sets, *GRID), project, timeout_s=300)
    assert teacher.returncode == 0, teacher.stderr
    distill = on_gpu("train_with_distill.py", "--seed", "1", *GRID, epochs=40)
    with Script(distill, project) as script:
        script.wait_until(lambda: "epoch 3/40" in script.stderr, timeout_s=120)
        script.kill()
    done = run(distill, project, timeout_s=300)
    assert done.returncode == 0, done.stderr
    assert "epoch 40/40" in done.stderr
    assert "epoch 1/40" not in done.stderr


def test_a_compiled_model_trains(project: Path) -> None:
    done = run(on_gpu("train.py", "--seed", "2", "--set", "training.compile=true"), project, timeout_s=300)
    assert done.returncode == 0, done.stderr
    assert "has no effect" not in done.stderr
