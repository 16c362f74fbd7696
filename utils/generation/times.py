"""Travel times with the spread of real ones.

The model predicts one time for each road, which the loss that it is trained by draws somewhat below the median: trips
are too short, and all alike. What log1p(seconds) of the validation trips is off by, r_ij on road j of trip i, is taken
apart into a factor of the trip (a slow driver, rain) and one of the road: r_ij = mu + a_i + e_ij. A generated trip
draws mu + a once, and e for each road, from what was found.

The mean r_i of a trip of n_i roads varies by s_a^2 + s_e^2 / n_i, of which s_a^2 is the trip's. So (r_i - mu) is scaled
by s_a / sqrt(s_a^2 + s_e^2 / n_i), and the rest r_ij - r_i by sqrt(n_i / (n_i - 1)): variances are the true ones.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.hoser import HOSER
from utils.data.loader import BatchLoader
from utils.generation.paths import Query, Trip
from utils.runtime.cores import on_free_cores
from utils.runtime.progress import progress

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TimeResiduals:
    """What a trip's predicted log1p(seconds) are off by."""

    trip: Floats  # [n], mu + a of each validation trip
    step: Floats  # [m], e of each road of those that have two or more

    def draw(self, trip: Trip, query: Query, rank: int, seed: int) -> Trip:
        """The trip with drawn times; the draws depend on the seed, the query and the rank alone."""
        if not trip.log_time:
            return trip
        draws = np.random.default_rng([seed, query.row, rank, 1])
        factor = draws.choice(self.trip)
        log_time = np.array(trip.log_time) + factor + draws.choice(self.step, len(trip.log_time))
        seconds = np.maximum(np.expm1(log_time), 0.0).round().astype(np.int64)
        return dataclasses.replace(trip, time_s=(query.start_s + np.cumsum([0, *seconds])).tolist())


@torch.no_grad()
def calibrate(model: HOSER, loader: BatchLoader) -> TimeResiduals:
    """Compare the times that a model predicts along real trips with the real ones.

    Args:
        model: on the loader's device.
        loader: val.csv.
    """
    model.eval()
    embeddings = model.embed_network()
    columns = []
    for batch in progress(
        on_free_cores(loader.in_order(), loader.device), "calibrating times", loader.num_batches, "batches"
    ):
        predicted = model(batch, embeddings).time_pred.index_select(0, batch.label_candidate)
        residual = (batch.log_time - predicted).double() * loader.statistics.std
        columns.append((batch.trip_index[batch.trip_of_step].cpu().numpy(), residual.cpu().numpy()))
    trip, residual = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return decompose(trip, residual)


def decompose(trip: NDArray[np.int64], residual: Floats) -> TimeResiduals:
    """Take residuals apart (see above).

    Args:
        trip: [P], the trip of each, from 0.
        residual: [P], r_ij.
    """
    count = np.bincount(trip)
    count = count[count > 0]
    trip = np.unique(trip, return_inverse=True)[1]
    mean = np.bincount(trip, residual) / count
    rest = residual - mean[trip]
    mu = residual.mean()
    several = count > 1
    step_variance = (rest**2).sum() / max((count - 1).sum(), 1)
    # Expected square of r_i - mu: s_a^2 + s_e^2 / n_i.
    trip_variance = max(float(((mean - mu) ** 2 - step_variance / count).mean()), 0.0)
    total = trip_variance + step_variance / count
    scale = np.sqrt(np.divide(trip_variance, total, out=np.zeros_like(total), where=total > 0))
    inflate = np.sqrt(count / np.maximum(count - 1, 1))
    step = (rest * inflate[trip])[several[trip]]
    return TimeResiduals(trip=mu + (mean - mu) * scale, step=step if len(step) else np.zeros(1))
