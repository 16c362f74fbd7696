"""A model, the queries and the options: all that decides which trips are generated."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.hoser import HOSER
from utils.config import Config
from utils.data.dataset import City, file_digests
from utils.data.features import RoadTables
from utils.data.loader import BatchLoader
from utils.data.trips import TimeStatistics
from utils.files.checksums import content_digest, file_digest
from utils.generation.generator import TripGenerator
from utils.generation.options import SLOTS, GenerationOptions
from utils.generation.paths import PathModel, Query
from utils.generation.times import calibrate
from utils.training.weights import load_model

VERSION = 1  # raise it when the same options give other trips


@dataclass(frozen=True)
class GenerationJob:
    """What is to be generated."""

    checkpoint: Path
    config: Config
    city: City
    queries: list[Query]
    options: GenerationOptions
    device: torch.device
    times: str = "point"  # or "sampled"
    only_reached: bool = False  # trips that do not reach their destination go into a file of their own
    slots: int = SLOTS  # queries worked on at once

    def identity(self) -> dict[str, Any]:
        """What trips that exist already must have in common with this job to be its own."""
        return {
            "version": VERSION,
            **dataclasses.asdict(self.options),
            "times": self.times,
            "status": "reached" if self.only_reached else "all",
            "queries": content_digest([dataclasses.astuple(query) for query in self.queries]),
            "checkpoint": file_digest(self.checkpoint),
            "data": file_digests(self.city.folder),
            "configuration": content_digest(dataclasses.asdict(self.config.trajectory_encoder_config)),
        }

    def make_generator(self) -> TripGenerator:
        """Load the model.

        Raises:
            UserError: the checkpoint cannot be read, or is of another model.
        """
        city, config = self.city, self.config
        model = HOSER(config, city.features)
        load_model(model, self.checkpoint)
        model.to(self.device)
        statistics = TimeStatistics.from_trips(city.trips("train"))
        residuals = None
        if self.times == "sampled":
            tables, batch_size = RoadTables.from_network(city.network), config.optimizer_config.batch_size
            residuals = calibrate(model, BatchLoader(city.trips("val"), tables, statistics, batch_size, self.device))
        paths = PathModel(model, city.network, statistics)
        max_len = config.trajectory_encoder_config.max_len
        return TripGenerator(paths, city.network, self.options, max_len, self.slots, residuals)
