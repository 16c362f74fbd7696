"""A model's metrics on a set of trips, in total and broken down."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.hoser import HOSER
from utils.data.loader import BatchLoader
from utils.data.road_network import RoadNetwork
from utils.runtime.cores import on_free_cores
from utils.runtime.precision import Precision
from utils.runtime.progress import progress
from utils.training.engine import check_predictions
from utils.training.metrics import score

TRIP_LENGTHS = ((2, 10), (11, 20), (21, 50), (51, 100), (101, None))  # roads of a trip, both ends included


@dataclass(frozen=True)
class StepMetrics:
    """Means over some steps."""

    steps: int
    next_step_acc: float
    top3_acc: float  # the road that was taken is among the three highest scores
    mean_reciprocal_rank: float
    time_pred_mape: float  # relative error of log1p(seconds), as in training
    time_mape: float  # relative error of seconds
    time_mae_s: float  # error in seconds


@dataclass(frozen=True)
class Report:
    """StepMetrics of all steps, by highway class of the road that was taken, and by the trip's number of roads."""

    trips: int
    total: StepMetrics
    by_class: dict[str, StepMetrics]
    by_trip_length: dict[str, StepMetrics]


@torch.no_grad()
def _score_steps(model: HOSER, loader: BatchLoader, precision: Precision) -> dict[str, NDArray]:
    """Of each step of the loader's trips: rank of the road that was taken, errors of its time, and which step it is."""
    model.eval()
    with precision.autocast():
        embeddings = model.embed_network()
    columns: list[dict[str, NDArray]] = []
    bar = progress(on_free_cores(loader.in_order(), loader.device), "evaluating", loader.num_batches, "batches")
    for batch in bar:
        with precision.autocast():
            prediction = model(batch, embeddings)
        check_predictions(bool(prediction.logits.isfinite().all()), "evaluating")
        scores = score(prediction, batch, loader.statistics)
        values = {
            "rank": scores.rank,
            "relative_log_error": scores.relative_log_time_error,
            "relative_error": scores.relative_time_error,
            "error_s": scores.time_error_s,
            "taken": batch.candidate_road_id[batch.label_candidate],
            "trip": batch.trip_index[batch.trip_of_step],
            "roads": batch.trip_len[batch.trip_of_step] + 1,
        }
        columns.append({name: value.cpu().numpy() for name, value in values.items()})
    found = {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
    check_predictions(bool(np.isfinite(found["relative_error"]).all()), "evaluating")
    return found


def accuracy_by_trip(model: HOSER, loader: BatchLoader, precision: Precision) -> NDArray[np.float64]:
    """The share of steps with the right next road, of each trip of the loader's split, [trips]."""
    steps = _score_steps(model, loader, precision)
    right = np.bincount(steps["trip"], steps["rank"] == 0, loader.num_trips)
    return right / np.bincount(steps["trip"], minlength=loader.num_trips)


def evaluate_in_detail(model: HOSER, loader: BatchLoader, network: RoadNetwork, precision: Precision) -> Report:
    """Score every step of the loader's trips."""
    steps = _score_steps(model, loader, precision)
    errors = [steps[name] for name in ("relative_log_error", "relative_error", "error_s")]
    rank, taken, roads = steps["rank"], steps["taken"], steps["roads"]

    def metrics(chosen: np.ndarray) -> StepMetrics:
        return _step_metrics(rank[chosen], *(error[chosen] for error in errors))

    road_class = network.road_attr_type[taken]
    by_class = {name: road_class == i for i, name in enumerate(network.highway_classes)}
    by_length = {
        f"{low}-{high}" if high else f"{low} or more": (roads >= low) & (roads <= (high or np.inf))
        for low, high in TRIP_LENGTHS
    }
    return Report(
        trips=loader.num_trips,
        total=metrics(np.ones(len(rank), dtype=bool)),
        by_class={name: metrics(chosen) for name, chosen in by_class.items() if chosen.any()},
        by_trip_length={name: metrics(chosen) for name, chosen in by_length.items() if chosen.any()},
    )


def _step_metrics(
    rank: np.ndarray, relative_log_error: np.ndarray, relative_error: np.ndarray, error_s: np.ndarray
) -> StepMetrics:
    return StepMetrics(
        steps=len(rank),
        next_step_acc=float((rank == 0).mean()),
        top3_acc=float((rank < 3).mean()),
        mean_reciprocal_rank=float((1.0 / (rank + 1)).mean()),
        time_pred_mape=float(relative_log_error.mean(dtype=np.float64)),
        time_mape=float(relative_error.mean(dtype=np.float64)),
        time_mae_s=float(error_s.mean(dtype=np.float64)),
    )


def format_report(report: Report, title: str) -> str:
    """The report as a table."""
    rows = [("all", report.total)]
    rows += [(f"to {name}", metrics) for name, metrics in report.by_class.items()]
    rows += [(f"trips of {name} roads", metrics) for name, metrics in report.by_trip_length.items()]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{title}, {report.trips:,} trips",
        f"{'':{width}}    steps  accuracy   top-3     MRR  time MAPE*  time MAPE  time MAE",
    ]
    lines += [
        f"{name:{width}} {m.steps:8,d}  {m.next_step_acc:8.4f}  {m.top3_acc:6.4f}  {m.mean_reciprocal_rank:6.4f}"
        f"  {m.time_pred_mape:10.4f}  {m.time_mape:9.4f}  {m.time_mae_s:6.2f} s"
        for name, m in rows
    ]
    lines.append("time MAPE*: of log1p(seconds), as in training")
    return "\n".join(lines)
