"""The training loss. To add a term, add it to `HOSERLoss.__call__`: its name is its TensorBoard tag."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from models.batch import Batch, Prediction
from models.thread_count import one_thread
from utils.data.trips import TimeStatistics
from utils.training.metrics import log_times, pad_candidates, relative_error


@dataclass(frozen=True)
class HOSERLoss:
    """loss = loss_next_step + loss_time_pred [+ kl_weight * loss_kl] (HOSER, section 4.4).

    Where several processes share a batch, each term is this process's share of it: the shares add up to the term.
    """

    statistics: TimeStatistics
    kl: Callable[[Prediction, Batch], Tensor] | None = None  # distillation only
    kl_weight: float = 0.0  # lambda

    def __call__(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """The terms and their weighted sum `loss`, scalars with gradients."""
        predicted, true = log_times(prediction, batch, self.statistics)
        logits = pad_candidates(prediction.logits, batch)
        with one_thread():  # sums over many steps
            losses = {
                "loss_next_step": F.cross_entropy(logits, batch.label) * batch.share,
                "loss_time_pred": relative_error(predicted, true).mean() * batch.share,
            }
        weights = dict.fromkeys(losses, 1.0)
        if self.kl is not None:
            losses["loss_kl"], weights["loss_kl"] = self.kl(prediction, batch), self.kl_weight
        losses["loss"] = sum(weights[name] * term for name, term in losses.items())
        return losses
