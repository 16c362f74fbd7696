"""Timing the parts of training on a data set, beside what the machine itself can do."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import profile

from models.batch import Batch
from models.hoser import HOSER
from utils.benchmark.gpu import MEANINGS as GPU_MEANINGS
from utils.benchmark.gpu import measure_gpu
from utils.benchmark.roofline import count_flops, count_graph_bytes, machine_rates, seconds
from utils.config import PROJECT, Config, config_to_dict
from utils.data.dataset import City
from utils.data.loader import BatchLoader, make_loaders
from utils.data.road_network import read_road_network
from utils.distillation.kl_loss import DistillationTerm, load_teacher_reader, teacher_path
from utils.distillation.score_cache import CachedLogProbs, score_windows
from utils.distillation.split_windows import find_windows
from utils.runtime.progress import progress
from utils.training.engine import Learner, evaluate, optimizer_step
from utils.training.losses import HOSERLoss

Figures = dict[str, float]
WARM_UP_STEPS = 3
TEACHER_BLOCKS = 5
# Of the comparison with the machine's limit.
ROUNDS, STEPS_IN_A_ROUND = 5, 5

# What the figures are, in the order of the table.
MEANINGS = {
    "batch_size": "trips in a batch",
    "prepare_trips_per_s": "first start: trips parsed and cached, a second (with the roads; without starting Python)",
    "prepare_peak_rss_mb": "first start: peak resident memory",
    "warm_start_s": "later starts: from starting Python to the first batch",
    "features_s": "roadmap.geo and roadmap.rel -> road features",
    "csv_ms_per_trip": "CSV -> trips",
    "loader_ms": "making a batch",
    "loader_batches_per_s": "batches a second, by the loader alone",
    "forward_ms": "forward pass and losses",
    "backward_ms": "backward pass",
    "optimizer_ms": "clipping and AdamW",
    "step_ms": "all four, median of the steps",
    "tokens_per_s": "steps of trips a second",
    "epoch_s": "training steps of an epoch",
    "evaluation_ms_per_trip": "validation",
    "peak_rss_mb": "peak resident memory of training and evaluation",
    "distilled_over_vanilla": "a training step with the teacher's cached answers, over one without",
    "teacher_steps_per_s": "steps that the teacher answers a second, when its cache is made",
    "matmul_gflop_per_s": "this machine: float32 product of 4096 x 4096 matrices",
    "copy_gb_per_s": "this machine: copy of 1 GiB, read and written",
    "flops_per_step": "operations of the matrix products of a training step (mean), without padding",
    "bytes_per_step": "bytes of the graph layers of a training step (mean)",
    "limit_ms": "what those take at this machine's rates",
    "share_of_limit": "limit_ms / (forward + backward + optimizer), in turn with these products and copies",
} | GPU_MEANINGS


def measure(dataset: str, config: Config, city: City, device: torch.device, steps: int, trace: Path | None) -> Figures:
    """Figures by name, see `MEANINGS`.

    Args:
        dataset: its name.
        config: sizes, batch size, precision, distillation.
        city: the data.
        device: what to measure.
        steps: training steps that are timed, after a few to warm up; medians are given.
        trace: where to write a trace of a few steps, for chrome://tracing or ui.perfetto.dev.
    """
    figures: Figures = {"batch_size": config.optimizer_config.batch_size}
    figures |= measure_starts(dataset, config, city)
    figures["features_s"], _ = seconds(device, read_road_network, city.folder)
    taken, trips = seconds(device, city.trips_of, city.folder / "val.csv")
    figures["csv_ms_per_trip"] = 1e3 * taken / len(trips)
    loaders = make_loaders(city, config, device)
    train, val = loaders["train"], loaders["val"]
    loss_function = HOSERLoss(train.statistics)
    torch.manual_seed(0)
    model = HOSER(config, city.features).to(device)
    learner = Learner.from_config(model, config, train)
    figures |= measure_steps(learner, train, loss_function, steps)
    if device.type == "cuda":
        figures |= measure_gpu(learner, train, loss_function)
    figures["epoch_s"] = figures["step_ms"] / 1e3 * train.num_batches
    taken, _ = seconds(device, evaluate, model, val, learner.precision, "evaluating")
    figures["evaluation_ms_per_trip"] = 1e3 * taken / val.num_trips
    figures["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures["distilled_over_vanilla"] = _ratio(learner, train, loss_function, config, steps)
    if teacher_path(config.distill, dataset).is_file():
        figures["teacher_steps_per_s"] = _teacher_rate(config, dataset, city, train)
    figures |= measure_limit(learner, train, loss_function)
    if trace is not None:
        _write_trace(trace, learner, train, loss_function)
    return figures


def measure_starts(dataset: str, config: Config, city: City) -> Figures:
    """The first start on a data set, which parses it, and a later one: each a process of its own, on a copy."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        copy = Path(name) / city.folder.resolve().name
        copy.mkdir()
        for path in city.folder.resolve().iterdir():
            if path.is_file():
                (copy / path.name).symlink_to(path)
        first, warm = (_start(dataset, config, copy) for _ in range(2))
    return {
        "prepare_trips_per_s": first["trips"] / first["load_s"],
        "prepare_peak_rss_mb": first["peak_rss_mb"],
        "warm_start_s": warm["wall_s"],
    }


def _start(dataset: str, config: Config, folder: Path) -> Figures:
    arguments = [str(PROJECT), dataset, str(folder), json.dumps(config_to_dict(config))]
    code = "import gc, sys; gc.disable(); sys.path[0] = sys.argv[1]; "  # as `answer_before_imports` does
    code += "from utils.benchmark.first_batch import first_batch; first_batch(*sys.argv[2:])"
    began = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        figures = process.stdout.readline()
        wall_s = time.perf_counter() - began  # without the end of the process
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the first batch could not be made:\n{errors}")
    return json.loads(figures) | {"wall_s": wall_s}


def measure_steps(learner: Learner, loader: BatchLoader, loss_function: HOSERLoss, steps: int) -> Figures:
    """Medians of the parts of a training step, in ms, and rates."""
    times, tokens = time_steps(learner, loader, loss_function, steps)
    figures = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    return figures | {
        "loader_batches_per_s": 1e3 / figures["loader_ms"],
        "tokens_per_s": 1e3 * statistics.mean(tokens) / figures["step_ms"],
    }


def time_steps(
    learner: Learner, loader: BatchLoader, loss_function: HOSERLoss, steps: int
) -> tuple[dict[str, list[float]], list[int]]:
    """The parts of each training step, in ms, and the steps of its trips; after some to warm up, always the same."""
    learner.prepare()
    optimizer, precision = learner.optimizer, learner.precision
    learning_rate, max_norm = learner.schedule.lr_at(1), learner.config.max_norm
    times: dict[str, list[float]] = {name: [] for name in ("loader", "forward", "backward", "optimizer", "step")}
    tokens, device = [], loader.device
    for trips in progress(_trips_of_steps(loader, WARM_UP_STEPS + steps), "training steps", None, "steps"):
        began = time.perf_counter()
        loading, batch = seconds(device, loader.batch, trips)
        forward, losses = seconds(device, _forward, learner, loss_function, batch)
        backward, _ = seconds(device, precision.scaler.scale(losses["loss"]).backward)
        stepping, _ = seconds(device, optimizer_step, optimizer, precision, learning_rate, max_norm)
        for name, taken in zip(times, (loading, forward, backward, stepping), strict=False):
            times[name].append(1e3 * taken)
        times["step"].append(1e3 * (time.perf_counter() - began))
        tokens.append(len(batch.road_id))
    return {name: values[WARM_UP_STEPS:] for name, values in times.items()}, tokens[WARM_UP_STEPS:]


def _trips_of_steps(loader: BatchLoader, steps: int) -> list[NDArray[np.int64]]:
    order, size = np.random.default_rng(0).permutation(loader.num_trips), loader.batch_size
    starts = (step * size % max(loader.num_trips - size, 1) for step in range(steps))
    return [order[start : start + size] for start in starts]


def _forward(learner: Learner, loss_function: HOSERLoss, batch: Batch) -> dict[str, Tensor]:
    with learner.precision.autocast():
        return loss_function(learner.network(batch), batch)


def _ratio(learner: Learner, loader: BatchLoader, vanilla: HOSERLoss, config: Config, steps: int) -> float:
    """Time of a distilled over a vanilla step: the median of runs in turn, since machines drift.

    The answers are zeros: what they say makes no difference to the time.
    """
    values = torch.zeros(loader.num_candidates, dtype=torch.float16, device=loader.device)
    answers = CachedLogProbs(values, loader.first_candidate.to(loader.device))
    term = DistillationTerm(answers, config.distill.temperature, config.distill.steps == "last")
    distilled = HOSERLoss(loader.statistics, term, config.distill.lambda_)
    ratios = []
    for _ in range(3):
        base, with_teacher = (
            measure_steps(learner, loader, loss_function, steps)["step_ms"] for loss_function in (vanilla, distilled)
        )
        ratios.append(with_teacher / base)
    return statistics.median(ratios)


def _teacher_rate(config: Config, dataset: str, city: City, loader: BatchLoader) -> float:
    """Steps of the split over the seconds that their scores take, at the rate of its last (and longest) windows."""
    reader, _ = load_teacher_reader(config.distill, dataset, city, loader.device)
    teacher = reader.teacher
    began = time.perf_counter()
    windows = find_windows(loader, reader.token_of_road, reader.window, teacher.sot, teacher.destination)
    finding = time.perf_counter() - began
    blocks = list(windows.blocks(0, len(windows), reader.tokens_at_once))[-TEACHER_BLOCKS:]
    taken = sum(seconds(loader.device, score_windows, reader, loader, windows, *block)[0] for block in blocks)
    read = sum(int(windows.num_tokens[slice(*block)].sum()) for block in blocks)
    return int((loader.degree > 0).sum()) / (finding + taken * int(windows.num_tokens.sum()) / max(read, 1))


def measure_limit(learner: Learner, loader: BatchLoader, loss_function: HOSERLoss) -> Figures:
    """What training steps must do, the least time for it, and how close the same steps come to that.

    The machine's rates and steps in turn, since machines drift; medians.
    """
    work = _least_work(learner.model, loader, loss_function)
    rounds: list[Figures] = []
    for _ in range(ROUNDS):
        rates = machine_rates(loader.device)
        times, _ = time_steps(learner, loader, loss_function, STEPS_IN_A_ROUND)
        limit_ms = work["flops_per_step"] / (1e6 * rates["matmul_gflop_per_s"])
        limit_ms += work["bytes_per_step"] / (1e6 * rates["copy_gb_per_s"])
        taken_ms = sum(statistics.mean(times[name]) for name in ("forward", "backward", "optimizer"))
        rounds.append(rates | {"limit_ms": limit_ms, "share_of_limit": limit_ms / taken_ms})
    return work | {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def _least_work(model: HOSER, loader: BatchLoader, loss_function: HOSERLoss) -> Figures:
    """What the steps that `measure_limit` times must do, on average."""
    timed = _trips_of_steps(loader, WARM_UP_STEPS + STEPS_IN_A_ROUND)[WARM_UP_STEPS:]
    batches = [loader.batch(trips) for trips in timed]
    return {
        "flops_per_step": statistics.mean(count_flops(model, loss_function, batch) for batch in batches),
        "bytes_per_step": statistics.mean(count_graph_bytes(model, batch) for batch in batches),
    }


def _write_trace(path: Path, learner: Learner, loader: BatchLoader, loss_function: HOSERLoss) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with profile() as profiler:
        measure_steps(learner, loader, loss_function, steps=1)
    profiler.export_chrome_trace(str(path))


def format_figures(figures: Figures, names: Sequence[str] = tuple(MEANINGS)) -> str:
    """A line for each figure: its name, its value, its meaning."""
    lines = []
    for name in names:
        if name in figures:
            value = figures[name]
            shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
            lines.append(f"{name:24} {shown:>16}  {MEANINGS[name]}")
    return "\n".join(lines)
