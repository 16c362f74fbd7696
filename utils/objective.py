"""Losses and scores of a prediction: one forward pass judged the same way in training and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.inputs import Batch, Prediction
from utils.loader import TimeStatistics


@dataclass(frozen=True)
class Losses:
    """The loss of one batch and its terms, scalars with gradients."""

    next_step: Tensor  # cross-entropy over the candidates
    time_pred: Tensor  # mean relative error of the log time
    kl: Tensor | None  # distillation only
    total: Tensor


@dataclass(frozen=True)
class StepScores:
    """How good the prediction of each step is, [S] each."""

    rank: Tensor  # int64, place of the road that was taken; 0: predicted
    relative_time_error: Tensor  # float32, |predicted - true| / max(true, 1), both in log1p(seconds)
    time_error_s: Tensor  # float32, |predicted - true| in seconds


def pad_candidates(values: Tensor, batch: Batch) -> Tensor:
    """Values of the candidates [K] -> [S, C] float32; -inf where a step has fewer candidates."""
    shape = (len(batch.road_id), batch.max_candidates)
    padded = values.new_full(shape, float("-inf"), dtype=torch.float32)
    return padded.index_put((batch.step_of_candidate, batch.rank_of_candidate), values.float())


def label_rank(values: Tensor, batch: Batch) -> Tensor:
    """Place of the road that was taken when candidates are ordered by falling `values` [K], [S].

    Of equal values the first candidate comes first, as for argmax.
    """
    padded = pad_candidates(values, batch)
    label = batch.road_label.unsqueeze(1)
    own = padded.gather(1, label)
    earlier = torch.arange(padded.shape[1], device=padded.device) < label
    # Not `padded > own`: a score that is no number must not make its step look right.
    return (~(padded <= own) | ((padded == own) & earlier)).sum(1)


@dataclass(frozen=True)
class Objective:
    """What training minimises: loss_next_step + loss_time_pred [+ kl_weight * loss_kl].

    Of a batch that several processes have in parts, each gets its share: the shares add up to the loss of the whole.
    """

    statistics: TimeStatistics
    kl: Callable[[Prediction, Batch], Tensor] | None = None
    kl_weight: float = 0.0

    def __call__(self, prediction: Prediction, batch: Batch) -> Losses:
        predicted, true = _log_times(prediction, batch, self.statistics)
        next_step = F.cross_entropy(pad_candidates(prediction.logits, batch), batch.road_label) * batch.share
        time_pred = _relative_error(predicted, true).mean() * batch.share
        total = next_step + time_pred
        kl = self.kl(prediction, batch) if self.kl else None
        if kl is not None:
            total = total + self.kl_weight * kl
        return Losses(next_step, time_pred, kl, total)


def score(prediction: Prediction, batch: Batch, statistics: TimeStatistics) -> StepScores:
    """Judge each step."""
    predicted, true = _log_times(prediction, batch, statistics)
    return StepScores(
        rank=label_rank(prediction.logits, batch),
        relative_time_error=_relative_error(predicted, true),
        time_error_s=(predicted.expm1() - true.expm1()).abs(),
    )


def _log_times(prediction: Prediction, batch: Batch, statistics: TimeStatistics) -> tuple[Tensor, Tensor]:
    """Predicted and true log1p(seconds) of the road that was taken, [S]."""
    predicted = prediction.time_pred.index_select(0, batch.label_candidate).float()
    return tuple(value * statistics.std + statistics.mean for value in (predicted, batch.log_time))


def _relative_error(predicted: Tensor, true: Tensor) -> Tensor:
    return (predicted - true).abs() / true.clamp(min=1.0)
