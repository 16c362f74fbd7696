"""One epoch of training, and one evaluation."""

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from loguru import logger
from torch import Tensor, nn

from models.batch import Batch, Prediction
from models.hoser import HOSER
from models.thread_count import threads_for
from utils.config import Config
from utils.config_sections import OptimizerConfig, TeacherConfig
from utils.data.loader import BatchLoader
from utils.errors import UserError
from utils.runtime.cores import on_free_cores
from utils.runtime.distributed import Processes
from utils.runtime.precision import Precision
from utils.runtime.progress import progress
from utils.runtime.signals import take_signals
from utils.training.cuda_graph import RecordedModel
from utils.training.losses import HOSERLoss
from utils.training.metrics import BatchRecord, Metrics, score
from utils.training.optimizer import AdamW
from utils.training.schedule import Schedule, steps_per_epoch

# Losses are read back from the device this many batches at a time, so that it never waits for us.
READ_BACK = 32


def make_optimizer(model: nn.Module, config: OptimizerConfig | TeacherConfig) -> AdamW:
    """AdamW over all parameters; the rate is set at each step."""
    return AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


@dataclass(frozen=True)
class Learner:
    """A model and all that changes it."""

    model: HOSER
    # The model, or what computes the same: and adds up the gradients of all processes, or replays it on a GPU.
    network: Callable[[Batch], Prediction]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    config: OptimizerConfig

    @staticmethod
    def from_config(model: HOSER, config: Config, train: BatchLoader) -> "Learner":
        optim, processes = config.optimizer_config, train.processes
        precision = Precision(config.training.precision, train.device)
        parameters = sum(p.numel() for p in model.parameters())
        several = f", {processes.world_size} processes" if processes.world_size > 1 else ""
        logger.info(f"HOSER with {parameters:,} parameters on {train.device}, {precision.name}{several}")
        schedule = Schedule.from_config(optim, train.num_batches)
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
        if config.training.cuda_graph and model.embeds_whole_network and optim.accum_steps == processes.world_size == 1:
            network = RecordedModel(model, precision, train)
        return Learner(model, network, make_optimizer(model, optim), schedule, precision, optim)

    def prepare(self) -> None:
        """For training steps, when the model is as it will be trained: training mode; on a GPU, a recording."""
        self.model.train()
        if isinstance(self.network, RecordedModel):
            self.network.record()

    def gradients_synchronised(self, is_last: bool) -> AbstractContextManager:
        """Gradients are averaged over the processes with the last backward pass of an optimizer step only."""
        if is_last or self.network is self.model:
            return contextlib.nullcontext()
        return self.network.no_sync()


def train_epoch(
    learner: Learner, loader: BatchLoader, loss_function: HOSERLoss, seed: int, epoch: int, first_batch: int
) -> Iterator[list[BatchRecord]]:
    """Train one epoch (from 0); yields the records of its batches, some at a time.

    `first_batch` is the number of the epoch's first batch, through all epochs.

    Raises:
        UserError: a loss is not finite.
        KeyboardInterrupt, TerminatedError: a signal has arrived; so do all loops over batches.
    """
    model, precision, config, processes = learner.model, learner.precision, learner.config, loader.processes
    learner.prepare()
    # With dropout the epoch draws random numbers; like the shuffle they depend on seed and epoch alone.
    torch.manual_seed((seed + 1) * 1_000_003 + epoch + processes.rank * 7_919_000_000)
    first_step = epoch * steps_per_epoch(config, loader.num_batches) + 1
    pending: list[tuple[dict[str, Tensor], float]] = []
    batches = on_free_cores(loader.shuffled(seed, epoch), loader.device)
    bar = progress(batches, f"training, epoch {epoch + 1}", loader.num_batches, "batches")
    for index, batch in enumerate(bar):
        take_signals()
        window_start = index - index % config.accum_steps
        window_size = min(config.accum_steps, loader.num_batches - window_start)
        learning_rate = learner.schedule.lr_at(first_step + index // config.accum_steps)
        is_last = index + 1 == window_start + window_size
        with learner.gradients_synchronised(is_last), threads_for(model.fewest_rows(batch)):
            with precision.autocast():
                losses = loss_function(learner.network(batch), batch)
            # Each process has its share of the loss, and the gradients of all are averaged.
            precision.scaler.scale(losses["loss"] * (processes.world_size / window_size)).backward()
        if is_last:
            optimizer_step(learner.optimizer, precision, learning_rate, config.max_norm)
        pending.append(({name: term.detach() for name, term in losses.items()}, learning_rate))
        if len(pending) == READ_BACK or index + 1 == loader.num_batches:
            records = _read_back(pending, first_batch + index + 1 - len(pending), processes)
            _check_finite(records, first_batch, epoch)
            bar.set_postfix(loss=f"{records[-1].losses['loss']:.4f}")
            yield records
            pending = []


def optimizer_step(
    optimizer: torch.optim.Optimizer, precision: Precision, learning_rate: float, max_norm: float
) -> None:
    """One step at `learning_rate` with the gradients at hand, which are then cleared."""
    (group,) = optimizer.param_groups
    group["lr"] = learning_rate
    precision.scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(group["params"], max_norm)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad()


def _read_back(
    pending: list[tuple[dict[str, Tensor], float]], first_batch: int, processes: Processes
) -> list[BatchRecord]:
    names = list(pending[0][0])
    rows = processes.all_reduce(torch.stack([torch.stack(list(losses.values())) for losses, _ in pending])).tolist()
    return [
        BatchRecord(first_batch + i, learning_rate, dict(zip(names, row, strict=True)))
        for i, ((_, learning_rate), row) in enumerate(zip(pending, rows, strict=True))
    ]


def _check_finite(records: list[BatchRecord], first_batch: int, epoch: int) -> None:
    for record in records:
        losses = dict(record.losses)
        loss = losses.pop("loss")
        if not math.isfinite(loss):
            terms = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            advice = "a lower optimizer_config.learning_rate may help"
            if record.batch == 0:  # nothing has been learned yet
                advice = "one of these terms is not finite from the start"
            raise UserError(
                f"the loss is {loss} in epoch {epoch + 1}, batch {record.batch - first_batch + 1} ({terms}); training "
                f"stops, files already written stay; {advice}"
            )


@torch.no_grad()
def evaluate(model: HOSER, loader: BatchLoader, precision: Precision, title: str) -> Metrics:
    """Accuracy and time errors over all trips of a split. `title` stands beside the progress bar.

    Raises:
        UserError: predictions that are no numbers.
    """
    model.eval()
    with precision.autocast():
        network = model.embed_network()
    # predictions that are not finite, steps, and over these the sums of: correct, three errors of the time
    totals = torch.zeros(6, dtype=torch.float64, device=loader.device)
    for batch in progress(on_free_cores(loader.in_order(), loader.device), title, loader.num_batches, "batches"):
        take_signals()
        if not batch.share:
            continue
        with precision.autocast():
            prediction = model(batch, network)
        scores = score(prediction, batch, loader.statistics)
        totals[0] += (~prediction.logits.isfinite()).sum()
        totals[1] += len(batch.road_id)
        totals[2] += (scores.rank == 0).sum()
        for i, error in enumerate((scores.relative_log_time_error, scores.relative_time_error, scores.time_error_s)):
            totals[3 + i] += error.sum(dtype=torch.float64)
    not_finite, steps, *sums = loader.processes.all_reduce(totals).tolist()
    check_predictions(not_finite == 0 and math.isfinite(sums[1]), title)
    return Metrics(*(value / steps for value in sums))


def check_predictions(finite: bool, title: str) -> None:
    """Refuse a model whose predictions are NaN or infinite: its figures would mean nothing."""
    if not finite:
        raise UserError(
            f"{title}: the model's predictions are not finite; its training has diverged (a lower "
            "optimizer_config.learning_rate may help); files already written stay"
        )
