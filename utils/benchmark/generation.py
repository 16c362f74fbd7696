"""Timing the generation of trips, beside what the published code takes."""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from loguru import logger

from models.hoser import HOSER
from utils.benchmark.roofline import machine_rates
from utils.data.dataset import City
from utils.data.trips import TimeStatistics
from utils.generation.generator import TripGenerator
from utils.generation.options import SLOTS, GenerationOptions
from utils.generation.paths import PathModel, Query
from utils.generation.queries import sample_queries
from utils.runtime.progress import progress

NUMBERS = (16, 150, 256, 900)  # of queries
FIRST_QUERIES = 16
MOST_SLOTS = 1024
LEAST_S = 2.0  # a number of queries is repeated until it has taken as long; medians are given
# The published code, one path a forward pass, on one CPU thread: expansions/s, and that thread's GFLOP/s.
PUBLISHED = {"679 roads": 223, "43,800 roads": 128}
PUBLISHED_GFLOP_PER_S = 76


def measure_generation(
    city: City, model: HOSER, device: torch.device, max_len: int, numbers: Sequence[int]
) -> dict[str, Any]:
    """Generate trips for some `numbers` of sampled queries by the published search.

    Returns:
        `rows`, figures for each number of queries; `matmul_gflop_per_s`; and `published`, what
        the published code would extend a second at this machine's rate, by the size of the city.
    """
    train = city.trips("train")
    paths = PathModel(model, city.network, TimeStatistics.from_trips(train))
    paths._model = _Timed(paths._model)
    rows = []
    for number in progress(sorted(numbers), "generating", len(numbers), "runs"):
        queries = sample_queries(train, city.network.num_roads, number, seed=0)
        if not rows:
            _generate(paths, city, queries[:FIRST_QUERIES], max_len)  # what is done once, the first time
        runs = [_generate(paths, city, queries, max_len)]
        while sum(figures["seconds"] for figures in runs) < LEAST_S:
            runs.append(_generate(paths, city, queries, max_len))
        medians = {name: statistics.median(figures[name] for figures in runs) for name in runs[0]}
        peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"queries": number, "peak_rss_mb": peak_rss_mb} | medians)
    rate = machine_rates(device)["matmul_gflop_per_s"]
    published = {size: value * rate / PUBLISHED_GFLOP_PER_S for size, value in PUBLISHED.items()}
    logger.info(f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}")
    return {"rows": rows, "matmul_gflop_per_s": rate, "published": published}


def _generate(paths: PathModel, city: City, queries: list[Query], max_len: int) -> dict[str, float]:
    """Figures of one run; the model of `paths` is `_Timed`."""
    slots = min(max(len(queries), SLOTS), MOST_SLOTS)
    generator = TripGenerator(paths, city.network, GenerationOptions(), max_len, slots)
    paths._model.taken_s, began = 0.0, time.perf_counter()
    trips = [trip for _, [trip] in generator.trips(queries)]
    taken = time.perf_counter() - began
    expansions = sorted(trip.expansions for trip in trips)
    return {
        "seconds": taken,
        "expansions_per_s": sum(expansions) / taken,
        "trips_per_min": 60 * len(queries) / taken,
        "share_in_model": paths._model.taken_s / taken,
        "median_expansions": expansions[len(expansions) // 2],
    }


class _Timed:
    """A model, and how long it has been at work."""

    def __init__(self, model: Callable):
        self._model, self.taken_s = model, 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = self._model(*arguments)
        self.taken_s += time.perf_counter() - began
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def format_generation(figures: dict[str, Any]) -> str:
    """A table."""
    lines = ["queries  expansions/s  trips/min  in the model  peak memory  expansions (median)"]
    lines += [
        f"{row['queries']:7,d}  {row['expansions_per_s']:12,.0f}  {row['trips_per_min']:9,.0f}  "
        f"{row['share_in_model']:12.0%}  {row['peak_rss_mb']:8,.0f} MB  {row['median_expansions']:19,.0f}"
        for row in figures["rows"]
    ]
    lines.append(f"matrix rate {figures['matmul_gflop_per_s']:.0f} GFLOP/s; at that rate the published code extends")
    lines += [f"{value:12,.0f} paths/s on a city of {size}" for size, value in figures["published"].items()]
    return "\n".join(lines)
