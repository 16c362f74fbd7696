"""The final runs of a search beside each other: does distillation help, and by how much?"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray

from models.hoser import HOSER
from utils.config import Config
from utils.data.dataset import City, load_city
from utils.data.features import RoadTables
from utils.data.loader import BatchLoader
from utils.data.road_network import read_lengths
from utils.data.trips import TimeStatistics
from utils.files.atomic import atomic_write, atomic_write_text
from utils.files.locks import folder_lock
from utils.generation.job import GenerationJob
from utils.generation.options import GenerationOptions
from utils.generation.queries import queries_of
from utils.generation.run import choose_folder, generate
from utils.judging.generated import read_generated
from utils.judging.judge import Judge
from utils.judging.paired import Comparison, Metric, compare_models, correct_together, paired_difference
from utils.judging.report import comparison_json, format_comparison
from utils.judging.same_query import QueryMetrics
from utils.runtime.distributed import ALONE
from utils.runtime.precision import Precision
from utils.search.study import SharedStudy
from utils.training.evaluation import accuracy_by_trip
from utils.training.weights import load_model

KINDS = ("vanilla", "distill")
NAMES = ("undistilled", "distilled")
FOLDER = "comparison"  # of the files, in the study's folder
ACCURACY = Metric("accuracy", "next-road accuracy, mean of trips", "", True)


def compare_final_runs(
    study: SharedStudy, seeds: Sequence[int], config: Config, data_dir: str | None, device: torch.device
) -> str:
    """Generate trips for the queries of test.csv with each final run's best model, and compare the two kinds.

    Trips that are there already are taken as they are. Several processes take turns.

    Args:
        study: its final runs have been trained.
        seeds: of these; models of the same seed are compared with each other.
        config: of the best settings.
        data_dir: folder of the data set, by default data/{dataset}.
        device: where the models run.

    Returns:
        The comparison as a table. It is also written to comparison/comparison.json and .png.
    """
    folder = study.folder / FOLDER
    city = load_city(study.dataset, config, data_dir)
    test = city.trips("test")
    judge = Judge(city.network, read_lengths(city.folder), test, "test.csv", lambda: city.trips("train"), study.seed)
    with folder_lock(folder, wait=True):
        accuracy: list[list[NDArray[np.float64]]] = []
        queries: list[list[QueryMetrics]] = []
        for kind, name in zip(KINDS, NAMES, strict=True):
            paths = [study.folder / "final" / f"{kind}_seed{seed}" / "best.pth" for seed in seeds]
            logger.info(f"{name}: trips for {len(test):,} queries of test.csv, {len(seeds)} seeds")
            accuracy.append([_accuracy(path, config, city, device) for path in paths])
            queries.append([_query_metrics(path, config, city, judge, device) for path in paths])
        comparison = compare_models((NAMES[0], queries[0]), (NAMES[1], queries[1]), judge.seed)
        accuracies = paired_difference(ACCURACY, np.stack(accuracy[0]), np.stack(accuracy[1]), judge.seed)
        differences = correct_together([accuracies, *comparison.differences])
        comparison = dataclasses.replace(comparison, differences=differences)
        _write(folder, comparison)
    return format_comparison(comparison)


def _accuracy(checkpoint: Path, config: Config, city: City, device: torch.device) -> NDArray[np.float64]:
    """The accuracy on each trip of test.csv, [Q]."""
    model = HOSER(config, city.features)
    load_model(model, checkpoint)
    tables, statistics = RoadTables.from_network(city.network), TimeStatistics.from_trips(city.trips("train"))
    loader = BatchLoader(city.trips("test"), tables, statistics, config.optimizer_config.batch_size, device)
    return accuracy_by_trip(model.to(device), loader, Precision(config.training.precision, device))


def _query_metrics(checkpoint: Path, config: Config, city: City, judge: Judge, device: torch.device) -> QueryMetrics:
    """Generate what is not there yet, by the published search, and put it beside the real trips."""
    job = GenerationJob(checkpoint, config, city, queries_of(judge.real), GenerationOptions(), device)
    identity = job.identity()
    folder = choose_folder(checkpoint.parent / "generated", identity)
    generate(folder, job, identity, ALONE, lambda *_: None)
    metrics = judge.query_metrics(read_generated(folder, city.network))
    assert metrics is not None  # each query is that of a real trip
    return metrics


def _write(folder: Path, comparison: Comparison) -> None:
    from utils.judging.plots import plot_comparison  # pyplot is slow to import

    text = json.dumps(comparison_json(comparison), indent=2) + "\n"
    atomic_write_text(folder / "comparison.json", lambda file: file.write(text))
    picture = plot_comparison(comparison)
    atomic_write(folder / "comparison.png", lambda file: file.write(picture))
