"""tools/benchmark.py: that it measures what it says. How fast anything is, no test asks."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
from scripts import make_mini_teacher, mini

from models.batch import Batch
from models.hoser import HOSER
from tools.benchmark import main
from utils.benchmark import roofline, scaling, shared
from utils.benchmark.roofline import count_flops, count_graph_bytes
from utils.benchmark.scaling import MEASURED, growth
from utils.benchmark.steps import STEPS_IN_A_ROUND, measure_limit
from utils.config import load_config
from utils.data.dataset import load_city
from utils.data.loader import make_loaders
from utils.training.engine import Learner
from utils.training.losses import HOSERLoss

PROMISED = (
    *("batch_size", "features_s", "csv_ms_per_trip", "warm_start_s", "loader_ms", "forward_ms", "backward_ms"),
    *("optimizer_ms", "step_ms", "epoch_s", "evaluation_ms_per_trip", "peak_rss_mb", "matmul_gflop_per_s"),
    *("copy_gb_per_s", "flops_per_step", "share_of_limit", "prepare_trips_per_s", "tokens_per_s"),
    "distilled_over_vanilla",
)


@pytest.mark.slow
def test_it_prints_a_table_and_writes_figures_and_a_trace_and_leaves_the_data_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_mini_teacher(project)
    names = {path.name for path in (project / "data/Mini").iterdir()}
    for name, value in (("PRODUCT_SIZE", 256), ("COPY_BYTES", 1 << 20)):
        monkeypatch.setattr(roofline, name, value)
    options = ("--batch_size", "16", "--steps", "2", "--json", "f.json", "--profile", "t.json")
    monkeypatch.setattr(sys, "argv", mini("tools/benchmark.py", *options))
    monkeypatch.chdir(project)
    main()
    figures = json.loads((project / "f.json").read_text())
    assert figures["batch_size"] == 16
    assert all(figures[name] > 0 for name in (*PROMISED, "teacher_steps_per_s"))
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{printed}" for name in figures)
    parts = sum(figures[f"{name}_ms"] for name in ("loader", "forward", "backward", "optimizer"))
    assert 0.3 < figures["step_ms"] / parts < 3  # medians of few steps
    trace = json.loads((project / "t.json").read_text())
    assert {path.name for path in (project / "data/Mini").iterdir()} - {".cache"} == names
    assert any("addmm" in event.get("name", "") for event in trace["traceEvents"])


@pytest.mark.slow
def test_a_shared_machine_is_measured_with_real_processes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared, "ROUNDS", 1)
    monkeypatch.setattr(shared, "ALONE_S", 0.1)
    monkeypatch.setattr(sys, "argv", mini("tools/benchmark.py", "--shared", "--json", "f.json"))
    monkeypatch.chdir(project)
    main()
    figures = json.loads((project / "f.json").read_text())
    assert figures["times_alone"]["alone"] == 1 and figures["steps"] >= 1
    assert set(figures["step_ms"]) == {"alone", "two", "busy"} and min(figures["step_ms"].values()) > 0
    assert "two at once, the slower one" in capsys.readouterr().out


def test_generation_is_measured_for_several_numbers_of_queries(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config("Mini", str(project / "Mini.yaml"))
    torch.save(HOSER(config, load_city("Mini", config, project / "data/Mini").features).state_dict(), project / "m.pth")
    for name, value in (("PRODUCT_SIZE", 256), ("COPY_BYTES", 1 << 20)):
        monkeypatch.setattr(roofline, name, value)
    wanted = ("--generation", "m.pth", "--queries", "3", "20")
    monkeypatch.setattr(sys, "argv", mini("tools/benchmark.py", *wanted, "--json", "f.json"))
    monkeypatch.chdir(project)
    main()
    rows = json.loads((project / "f.json").read_text())["rows"]
    assert [row["queries"] for row in rows] == [3, 20]
    assert all(row["expansions_per_s"] > 0 and 0.05 < row["share_in_model"] < 1 for row in rows)
    printed = capsys.readouterr().out
    assert "expansions/s" in printed and "paths/s on a city of 679 roads" in printed


@pytest.mark.slow
def test_growth_is_measured_over_cities_each_twice_the_one_before(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "SIZES", 2)
    command = ["tools/benchmark.py", "--scale", "400", "60", "--config", "Mini.yaml", "--json", "growth.json"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(project)
    main()
    rows = json.loads((project / "growth.json").read_text())
    assert [row["trips"] for row in rows] == [30, 60]
    assert all(0.8 < row["roads"] / size < 1.2 for row, size in zip(rows, (200, 400), strict=True))
    assert all(row[name] > 0 for row in rows for name in MEASURED)
    assert all(row["peak_rss_mb"] > 100 for row in rows)
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "exponent"


def test_an_exponent_is_that_of_the_power_law() -> None:
    rows = [{"roads": float(n), "linear": 3.0 * n, "square": 0.5 * n**2} for n in (10, 20, 40, 80, 160)]
    assert growth(rows, "linear") == pytest.approx(1.0)
    assert growth(rows, "square") == pytest.approx(2.0)


def model_and_batch(project: Path, batch_size: int) -> tuple[HOSER, HOSERLoss, Batch]:
    sizes = {"road_network_encoder_config.zone_id_num_embeddings": 8, "optimizer_config.batch_size": batch_size}
    config = load_config(overrides=sizes)
    city = load_city("Mini", config, project / "data" / "Mini")
    loader = make_loaders(city, config, "cpu")["train"]
    return HOSER(config, city.features), HOSERLoss(loader.statistics), next(loader.shuffled(0, 0))


@pytest.mark.slow
def test_products_are_counted_without_the_padding_of_attention(project: Path) -> None:
    model, loss_function, batch = model_and_batch(project, 8)
    counted = count_flops(model, loss_function, batch)
    pairs = int((batch.trip_len**2).sum())
    # The parts that grow with steps and with pairs of steps, by hand, for the published sizes: width 256.
    steps, width, layers = len(batch.road_id), 256, 2
    linear = 3 * layers * 2 * steps * (3 * width**2 + width**2 + 8 * width**2)
    attention = 3 * layers * 2 * 2 * pairs * width
    assert linear + attention < counted < 2 * (linear + attention)
    assert pairs < sum(group.num_trips * group.max_len**2 for group in batch.groups)  # there was padding to take off


def test_counting_leaves_no_gradients_behind(project: Path) -> None:
    model, loss_function, batch = model_and_batch(project, 4)
    count_flops(model, loss_function, batch)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_the_least_time_is_for_the_steps_that_are_timed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches differ by a tenth and more."""
    for name, value in (("PRODUCT_SIZE", 256), ("COPY_BYTES", 1 << 20)):
        monkeypatch.setattr(roofline, name, value)
    config = load_config("Mini", str(project / "Mini.yaml"), ["optimizer_config.batch_size=4"])
    city = load_city("Mini", config, project / "data" / "Mini")
    train = make_loaders(city, config, "cpu")["train"]
    learner = Learner.from_config(HOSER(config, city.features), config, train)
    loss_function = HOSERLoss(train.statistics)
    timed, forward = [], learner.model.forward
    monkeypatch.setattr(learner.model, "forward", lambda batch: timed.append(batch) or forward(batch))
    figures = measure_limit(learner, train, loss_function)
    one_round = timed[-STEPS_IN_A_ROUND:]
    work = [count_flops(learner.model, loss_function, batch) for batch in one_round]
    assert figures["flops_per_step"] == pytest.approx(statistics.mean(work)) and len(set(work)) > 1
    assert figures["share_of_limit"] > 0


def test_graph_bytes_grow_with_the_roads_that_a_batch_touches(project: Path) -> None:
    small, large = (
        count_graph_bytes(model, batch) for model, _, batch in (model_and_batch(project, n) for n in (1, 99))
    )
    assert 0 < small < large
