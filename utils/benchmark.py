"""Timing the parts of training on a data set, beside what the machine itself can do."""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from models.hoser import HOSER
from models.inputs import Batch
from utils.city import City
from utils.config import Config
from utils.device import Precision
from utils.distillation import load_distillation
from utils.loader import BatchLoader, make_loaders
from utils.objective import Losses, Objective
from utils.road_network import read_road_network
from utils.training import Schedule, evaluate, make_optimizer, optimizer_step
from utils.trajectories import read_trips

Figures = dict[str, float]
WARM_UP_STEPS = 3


def measure(dataset: str, config: Config, city: City, device: torch.device, steps: int, distill: bool) -> Figures:
    """Seconds, milliseconds and sizes by name.

    Args:
        dataset: its name.
        config: sizes, batch size, precision, distillation.
        city: the data.
        device: what to measure.
        steps: training steps that are timed, after a few to warm up; medians are given.
        distill: whether to measure steps with the teacher's cached answers too.
    """
    figures: Figures = {"batch_size": config.optimizer_config.batch_size}
    figures["features_s"], network = _timed(device, read_road_network, city.folder)
    seconds, trips = _timed(device, read_trips, city.folder / "val.csv", network)
    figures["csv_ms_per_trip"] = 1e3 * seconds / len(trips)
    loaders = make_loaders(city, config, device)
    train, val = loaders["train"], loaders["val"]
    precision = Precision(config.training.precision, device)
    objective = Objective(train.statistics)
    torch.manual_seed(0)
    model = HOSER(config, city.features).to(device)
    figures |= measure_steps(model, train, objective, precision, config, steps)
    figures["epoch_s"] = figures["step_ms"] / 1e3 * train.num_batches
    seconds, _ = _timed(device, evaluate, model, val, precision, "evaluating")
    figures["evaluation_ms_per_trip"] = 1e3 * seconds / val.num_trips
    if distill:
        seconds, term = _timed(device, load_distillation, config.distill, dataset, city, train)
        figures["teacher_s"] = seconds
        distilled = Objective(train.statistics, term, config.distill.lambda_)
        figures["distilled_over_vanilla"] = _ratio(model, train, objective, distilled, precision, config, steps)
    figures["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures | measure_machine(device)


def measure_steps(
    model: HOSER, loader: BatchLoader, objective: Objective, precision: Precision, config: Config, steps: int
) -> Figures:
    """Medians of the parts of a training step, in ms."""
    optim = config.optimizer_config
    optimizer, schedule = make_optimizer(model, optim), Schedule.of(optim, loader.num_batches)
    order = np.random.default_rng(0).permutation(loader.num_trips)
    times: dict[str, list[float]] = {name: [] for name in ("loader", "forward", "backward", "optimizer", "step")}
    tokens, device = [], loader.device
    model.train()
    for step in tqdm(range(WARM_UP_STEPS + steps), "training steps", disable=None, leave=False):
        start = step * loader.batch_size % max(loader.num_trips - loader.batch_size, 1)
        began = time.perf_counter()
        loading, batch = _timed(device, loader.batch, order[start : start + loader.batch_size])
        forward, losses = _timed(device, _forward, model, objective, precision, batch)
        backward, _ = _timed(device, precision.scaler.scale(losses.total).backward)
        stepping, _ = _timed(device, optimizer_step, model, optimizer, precision, schedule.rate(1), optim.max_norm)
        for name, seconds in zip(times, (loading, forward, backward, stepping), strict=False):
            times[name].append(1e3 * seconds)
        times["step"].append(1e3 * (time.perf_counter() - began))
        tokens.append(len(batch.road_id))
    medians = {f"{name}_ms": statistics.median(values[WARM_UP_STEPS:]) for name, values in times.items()}
    return medians | {"steps_per_batch": statistics.mean(tokens[WARM_UP_STEPS:])}


def _ratio(
    model: HOSER,
    loader: BatchLoader,
    vanilla: Objective,
    distilled: Objective,
    precision: Precision,
    config: Config,
    steps: int,
) -> float:
    """Time of a distilled over a vanilla step: medians of runs in turn, since machines drift."""
    ratios = []
    for _ in range(3):
        base, with_teacher = (
            measure_steps(model, loader, objective, precision, config, steps)["step_ms"]
            for objective in (vanilla, distilled)
        )
        ratios.append(with_teacher / base)
    return statistics.median(ratios)


def _forward(model: HOSER, objective: Objective, precision: Precision, batch: Batch) -> Losses:
    with precision.autocast():
        return objective(model(batch), batch)


def measure_machine(device: torch.device) -> Figures:
    """Rate of a large float32 matrix product, and of a large copy (bytes read and written)."""
    a, b = (torch.randn(4096, 4096, device=device) for _ in range(2))
    source = torch.zeros(2**28, device=device)
    target = torch.empty_like(source)
    product = min(_timed(device, torch.matmul, a, b)[0] for _ in range(5))
    copy = min(_timed(device, target.copy_, source)[0] for _ in range(5))
    return {"matmul_gflop_per_s": 2 * 4096**3 / product / 1e9, "copy_gb_per_s": 2 * 4 * 2**28 / copy / 1e9}


def _timed(device: torch.device, work: Callable, *arguments: Any) -> tuple[float, Any]:
    """Seconds that `work(*arguments)` takes, and what it returns."""
    _synchronize(device)
    began = time.perf_counter()
    result = work(*arguments)
    _synchronize(device)
    return time.perf_counter() - began, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def format_figures(figures: Figures) -> str:
    """One figure a line."""
    return "\n".join(f"{name:24} {value:12,.3f}" for name, value in figures.items())
