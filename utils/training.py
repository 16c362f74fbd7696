"""One epoch of training, one evaluation, and the learning-rate schedule."""

import contextlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from models.hoser import HOSER
from utils.config import Config
from utils.config_sections import OptimizerConfig, TeacherConfig
from utils.device import Precision
from utils.errors import UserError
from utils.loader import BatchLoader
from utils.objective import Objective, score
from utils.processes import Processes
from utils.progress import progress
from utils.signals import take_signals

# Losses are read back from the device this many batches at a time, so that it never waits for us.
READ_BACK = 32


@dataclass(frozen=True)
class BatchRecord:
    """The numbers of one batch that are logged."""

    batch: int  # from 0, through all epochs
    learning_rate: float
    loss_next_step: float
    loss_time_pred: float
    loss: float
    loss_kl: float | None = None  # distillation only


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation."""

    next_step_acc: float  # share of steps whose road was predicted
    time_pred_mape: float  # mean of |predicted - true| / max(true, 1), both in log1p(seconds)


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the optimizer step alone: linear warm-up, then cosine to zero."""

    base: float
    total_steps: int
    warmup_steps: float

    @staticmethod
    def of(config: OptimizerConfig, batches_per_epoch: int) -> "Schedule":
        total = config.max_epoch * steps_per_epoch(config, batches_per_epoch)
        return Schedule(config.learning_rate, total, total * config.warmup_ratio)

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 1."""
        if step < self.warmup_steps:
            return self.base * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.base * 0.5 * (1.0 + math.cos(math.pi * progress))


def steps_per_epoch(config: OptimizerConfig, batches_per_epoch: int) -> int:
    """Optimizer steps of an epoch; a last, shorter accumulation window counts."""
    return -(-batches_per_epoch // config.accum_steps)


def make_optimizer(model: nn.Module, config: OptimizerConfig | TeacherConfig) -> torch.optim.AdamW:
    """AdamW over all parameters; the rate is set at each step."""
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the moments of a saved optimizer; its settings stay those that `optimizer` was made with."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


@dataclass(frozen=True)
class Learner:
    """A model and all that changes it."""

    model: HOSER
    network: nn.Module  # the model, or what computes the same and adds up the gradients of all processes
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    config: OptimizerConfig

    @staticmethod
    def of(model: HOSER, config: Config, train: BatchLoader) -> "Learner":
        optim, processes = config.optimizer_config, train.processes
        precision = Precision(config.training.precision, train.device)
        parameters = sum(p.numel() for p in model.parameters())
        several = f", {processes.count} processes" if processes.count > 1 else ""
        logger.info(f"HOSER with {parameters:,} parameters on {train.device}, {precision.name}{several}")
        schedule = Schedule.of(optim, train.num_batches)
        if schedule.total_steps == 1:
            logger.warning(
                "one optimizer step in all: the schedule ends there, at a rate of zero, so nothing is learned; "
                "raise optimizer_config.max_epoch or lower optimizer_config.batch_size"
            )
        if optim.accum_steps > train.num_batches:
            logger.warning(
                f"optimizer_config.accum_steps is {optim.accum_steps}, but an epoch has {train.num_batches} batches "
                "only, which then make one step"
            )
        network = processes.parallel(model)
        return Learner(model, network, make_optimizer(model, optim), schedule, precision, optim)

    def adding_up(self, is_last: bool) -> AbstractContextManager:
        """Gradients in the block stay in this process, unless they are the last ones of an optimizer step."""
        if is_last or self.network is self.model:
            return contextlib.nullcontext()
        return self.network.no_sync()


def train_epoch(
    learner: Learner, loader: BatchLoader, objective: Objective, seed: int, epoch: int, first_batch: int
) -> Iterator[list[BatchRecord]]:
    """Train one epoch (from 0); yields the records of its batches, some at a time.

    `first_batch` is the number of the epoch's first batch, through all epochs.

    Raises:
        UserError: a loss is not finite.
        KeyboardInterrupt, TerminatedError: a signal has arrived; so do all loops over batches.
    """
    model, precision, config, processes = learner.model, learner.precision, learner.config, loader.processes
    model.train()
    # With dropout the epoch draws random numbers; like the shuffle they depend on seed and epoch alone.
    torch.manual_seed((seed + 1) * 1_000_003 + epoch + processes.rank * 7_919_000_000)
    first_step = epoch * steps_per_epoch(config, loader.num_batches) + 1
    pending: list[tuple[Tensor, float]] = []
    batches = loader.shuffled(seed, epoch)
    bar = progress(batches, f"training, epoch {epoch + 1}", loader.num_batches, "batches")
    for index, batch in enumerate(bar):
        take_signals()
        window_start = index - index % config.accum_steps
        window_size = min(config.accum_steps, loader.num_batches - window_start)
        rate = learner.schedule.rate(first_step + index // config.accum_steps)
        is_last = index + 1 == window_start + window_size
        with learner.adding_up(is_last):
            with precision.autocast():
                losses = objective(learner.network(batch), batch)
            # Each process has its share of the loss, and the gradients of all are averaged.
            precision.scaler.scale(losses.total * processes.count / window_size).backward()
        if is_last:
            optimizer_step(model, learner.optimizer, precision, rate, config.max_norm)
        terms = [losses.next_step, losses.time_pred, losses.total, *([] if losses.kl is None else [losses.kl])]
        pending.append((torch.stack(terms).detach(), rate))
        if len(pending) == READ_BACK or index + 1 == loader.num_batches:
            records = _read_back(pending, first_batch + index + 1 - len(pending), processes)
            _check_finite(records, first_batch, epoch)
            bar.set_postfix(loss=f"{records[-1].loss:.4f}")
            yield records
            pending = []


def optimizer_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, rate: float, max_norm: float
) -> None:
    """One step at learning rate `rate` with the gradients at hand, which are then cleared."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    precision.scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad()


def _read_back(pending: list[tuple[Tensor, float]], first_batch: int, processes: Processes) -> list[BatchRecord]:
    rows = processes.sum(torch.stack([terms for terms, _ in pending])).tolist()
    rates = [rate for _, rate in pending]
    return [BatchRecord(first_batch + i, rate, *row) for i, (rate, row) in enumerate(zip(rates, rows, strict=True))]


def _check_finite(records: list[BatchRecord], first_batch: int, epoch: int) -> None:
    for record in records:
        if not math.isfinite(record.loss):
            raise UserError(
                f"the loss is {record.loss} in epoch {epoch + 1}, batch {record.batch - first_batch + 1} "
                f"(loss_next_step {record.loss_next_step}, loss_time_pred {record.loss_time_pred}); training stops, "
                "files already written stay; a lower optimizer_config.learning_rate may help"
            )


@torch.no_grad()
def evaluate(model: HOSER, loader: BatchLoader, precision: Precision, title: str) -> Metrics:
    """Accuracy and time error over all trips of a split. `title` stands beside the progress bar.

    Raises:
        UserError: predictions that are no numbers.
    """
    model.eval()
    with precision.autocast():
        network = model.embed_network()
    # correct steps, error, steps, scores that are no numbers
    totals = torch.zeros(4, dtype=torch.float64, device=loader.device)
    for batch in progress(loader.in_order(), title, loader.num_batches, "batches"):
        take_signals()
        if not batch.share:
            continue
        with precision.autocast():
            prediction = model(batch, network)
        scores = score(prediction, batch, loader.statistics)
        totals[0] += (scores.rank == 0).sum()
        totals[1] += scores.relative_time_error.sum(dtype=torch.float64)
        totals[2] += len(batch.road_id)
        totals[3] += (~prediction.logits.isfinite()).sum()
    correct, error, steps, not_finite = loader.processes.sum(totals).tolist()
    check_predictions(not_finite == 0 and math.isfinite(error), title)
    return Metrics(correct / steps, error / steps)


def check_predictions(finite: bool, title: str) -> None:
    """Refuse a model whose predictions are NaN or infinite: its figures would mean nothing."""
    if not finite:
        raise UserError(
            f"{title}: the model's predictions are not finite; its training has diverged (a lower "
            "optimizer_config.learning_rate may help); files already written stay"
        )
