"""Timing training on a shared machine: alone, two runs at once, and beside a busy process of another kind."""

import itertools
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from models.hoser import HOSER
from utils.config import Config
from utils.data.dataset import load_city
from utils.data.loader import make_loaders
from utils.runtime.cores import on_free_cores
from utils.runtime.device import choose_device
from utils.runtime.precision import Precision
from utils.runtime.progress import progress
from utils.training.engine import make_optimizer, optimizer_step
from utils.training.losses import HOSERLoss

ROUNDS = 3  # of the three situations, in turn; medians are given
ALONE_S = 5.0  # how long a run is timed alone, about
WARM_UP_STEPS = 3
SITUATIONS = {"alone": "alone", "two": "two at once, the slower one", "busy": "beside a busy process"}


def measure_shared(dataset: str, config: Config, data_dir: str | None) -> dict[str, Any]:
    """Milliseconds of a training step on the CPU in each situation, and how many times as long as alone."""
    context = get_context("spawn")
    runs = [_Run(context, dataset, config, data_dir) for _ in range(2)]
    busy = context.Process(target=_keep_busy, args=(stop := context.Event(), start := context.Event()), daemon=True)
    busy.start()
    step_s = runs[0].ready()
    runs[1].ready()
    steps = max(int(ALONE_S / step_s), 1)
    times: dict[str, list[float]] = {situation: [] for situation in SITUATIONS}
    for situation in progress([*SITUATIONS] * ROUNDS, "measuring", None, "situations"):
        if situation == "busy":
            start.set()
        working = runs if situation == "two" else runs[:1]
        for run in working:
            run.begin(steps)
        times[situation].append(max(run.end() for run in working) / steps)
        start.clear()
    stop.set()
    for process in (busy, *(run.process for run in runs)):
        process.terminate()
    alone = statistics.median(times["alone"])
    milliseconds = {situation: 1000 * statistics.median(values) for situation, values in times.items()}
    ratios = {situation: value / 1000 / alone for situation, value in milliseconds.items()}
    return {"threads": torch.get_num_threads(), "steps": steps, "step_ms": milliseconds, "times_alone": ratios}


class _Run:
    """A process that trains when it is told to."""

    def __init__(self, context: Any, dataset: str, config: Config, data_dir: str | None):
        self._pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_train, args=(dataset, config, data_dir, theirs), daemon=True
        )
        self.process.start()

    def ready(self) -> float:
        """Wait until it has loaded its data; seconds of a step."""
        return self._pipe.recv()

    def begin(self, steps: int) -> None:
        self._pipe.send(steps)

    def end(self) -> float:
        """Wait until it is done; the seconds that it took."""
        return self._pipe.recv()


def _train(dataset: str, config: Config, data_dir: str | None, pipe: Connection) -> None:
    """Load, report, and train as many steps as are asked for, again and again."""
    device = choose_device(-1, varied_shapes=True)
    city = load_city(dataset, config, data_dir)
    loader = make_loaders(city, config, device)["train"]
    model, loss_function = HOSER(config, city.features), HOSERLoss(loader.statistics)
    optimizer, precision = make_optimizer(model, config.optimizer_config), Precision("float32", device)
    epochs = itertools.chain.from_iterable(loader.shuffled(0, epoch) for epoch in itertools.count())

    def train(steps: int) -> float:
        began = time.perf_counter()
        for batch in on_free_cores(itertools.islice(epochs, steps), device):
            loss_function(model(batch), batch)["loss"].backward()
            optimizer_step(optimizer, precision, 1e-4, config.optimizer_config.max_norm)
        return time.perf_counter() - began

    train(WARM_UP_STEPS)
    pipe.send(train(WARM_UP_STEPS) / WARM_UP_STEPS)
    while True:
        pipe.send(train(pipe.recv()))


def _keep_busy(stop: Any, start: Any) -> None:
    """One core, between `start` and its end."""
    while not stop.is_set():
        if start.wait(0.1):
            until = time.perf_counter() + 0.1
            while time.perf_counter() < until:
                pass


def format_shared(figures: dict[str, Any]) -> str:
    """A table."""
    lines = [
        f"a training step with {figures['threads']} threads, median of {ROUNDS} rounds of {figures['steps']} steps"
    ]
    lines += [
        f"{SITUATIONS[name]:28} {figures['step_ms'][name]:10,.1f} ms  {figures['times_alone'][name]:6.2f} times alone"
        for name in SITUATIONS
    ]
    return "\n".join(lines)
