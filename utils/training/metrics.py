"""How good predictions are: the score of each step, and the metrics of a split."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.batch import Batch, Prediction
from utils.data.trips import TimeStatistics


@dataclass(frozen=True)
class BatchRecord:
    """The numbers of one batch that are logged."""

    batch: int  # from 0, through all epochs
    learning_rate: float
    losses: dict[str, float]  # each under its TensorBoard tag


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation."""

    next_step_acc: float  # share of steps whose road was predicted
    time_pred_mape: float  # mean of |predicted - true| / max(true, 1), both in log1p(seconds), as published
    # In seconds; None for epochs that were validated before these were measured.
    time_mape: float | None = None  # mean of |predicted - true| / max(true, 1 s)
    time_mae_s: float | None = None

    def __str__(self) -> str:
        parts = [f"accuracy {self.next_step_acc:.4f}", f"time MAPE {self.time_pred_mape:.4f} of log1p(s)"]
        if self.time_mape is not None:
            parts += [f"{self.time_mape:.4f} of seconds", f"MAE {self.time_mae_s:.2f} s"]
        return ", ".join(parts)


@dataclass(frozen=True)
class StepScores:
    """How good the prediction of each step is, [S] each."""

    rank: Tensor  # int64, rank of the road that was taken; 0: predicted
    relative_log_time_error: Tensor  # float32, |predicted - true| / max(true, 1), both in log1p(seconds)
    relative_time_error: Tensor  # float32, |predicted - true| / max(true, 1 s), both in seconds
    time_error_s: Tensor  # float32, |predicted - true|


def score(prediction: Prediction, batch: Batch, statistics: TimeStatistics) -> StepScores:
    """Judge each step."""
    predicted, true = log_times(prediction, batch, statistics)
    predicted_s, true_s = predicted.expm1(), true.expm1()
    return StepScores(
        rank=rank_of_label(prediction.logits, batch),
        relative_log_time_error=relative_error(predicted, true),
        relative_time_error=relative_error(predicted_s, true_s),
        time_error_s=(predicted_s - true_s).abs(),
    )


def pad_candidates(values: Tensor, batch: Batch) -> Tensor:
    """Values of the candidates [K] -> [S, C] float32; -inf where a step has fewer candidates."""
    shape = (len(batch.road_id), batch.max_candidates)
    padded = values.new_full(shape, float("-inf"), dtype=torch.float32)
    return padded.index_put((batch.step_of_candidate, batch.candidate_index), values.float())


def rank_of_label(values: Tensor, batch: Batch) -> Tensor:
    """Rank [S], from 0, of the road that was taken when candidates are ordered by falling `values` [K].

    Of equal values the first candidate comes first, as for argmax.
    """
    padded = pad_candidates(values, batch)
    label = batch.label.unsqueeze(1)
    own = padded.gather(1, label)
    earlier = torch.arange(padded.shape[1], device=padded.device) < label
    # Not `padded > own`: a score that is no number must not make its step look right.
    return (~(padded <= own) | ((padded == own) & earlier)).sum(1)


def log_times(prediction: Prediction, batch: Batch, statistics: TimeStatistics) -> tuple[Tensor, Tensor]:
    """Predicted and true log1p(seconds) of the road that was taken, [S] each."""
    predicted = prediction.time_pred.index_select(0, batch.label_candidate).float()
    return tuple(value * statistics.std + statistics.mean for value in (predicted, batch.log_time))


def relative_error(predicted: Tensor, true: Tensor) -> Tensor:
    """|predicted - true| / max(true, 1), elementwise."""
    return (predicted - true).abs() / true.clamp(min=1.0)
