"""Two heuristics, smallest angle and smallest distance: what any model must beat."""

from dataclasses import dataclass

import torch

from utils.data.loader import BatchLoader
from utils.training.metrics import rank_of_label


@dataclass(frozen=True)
class Heuristics:
    """Shares of the steps of a split."""

    smallest_angle_acc: float  # right: the candidate whose heading is closest to that of the destination
    smallest_distance_acc: float  # right: the candidate nearest to the destination
    single_candidate_share: float  # nothing to choose


@torch.no_grad()
def measure_heuristics(loader: BatchLoader) -> Heuristics:
    """Accuracy of the two trivial choices, and how often there is no choice."""
    counts = torch.zeros(4, dtype=torch.int64, device=loader.device)
    for batch in loader.in_order():
        if not batch.share:
            continue
        angle_rank = rank_of_label(-batch.metric_angle, batch)
        distance_rank = rank_of_label(-batch.metric_distance, batch)
        hits = (angle_rank == 0, distance_rank == 0, batch.candidate_len == 1)
        counts[:3] += torch.stack([hit.sum() for hit in hits])
        counts[3] += len(batch.road_id)
    *hits, steps = loader.processes.all_reduce(counts).tolist()
    return Heuristics(*(number / steps for number in hits))
