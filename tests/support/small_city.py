"""A network that is small enough to follow every path through it, and what a model thinks of each."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers import trip, write_roads, write_trips

from models.hoser import HOSER
from utils.config import load_config
from utils.data.dataset import City, load_city
from utils.data.trips import TimeStatistics
from utils.generation.paths import PathModel, Query

SMALL = [
    *(f"road_network_encoder_config.{part}_emb_dim=4" for part in ("road_id", "len", "type", "lon", "lat")),
    "road_network_encoder_config.intersection_emb_dim=20",
    "road_network_encoder_config.zone_id_emb_dim=20",
    "road_network_encoder_config.zone_id_num_embeddings=2",
    "trajectory_encoder_config.hidden_dim=20",
    "navigator_config.hidden_dim=20",
]
START_S = 1446710400  # 2015-11-05T08:00:00Z, a Thursday
# A block with two ways around it, a way back, a dead end (7), a road that nothing leads to (8), a loop (6 -> 6).
RELATIONS = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (3, 5), (4, 6), (5, 6), (6, 6), (3, 0), (5, 1), (4, 7), (8, 0)]


@dataclass(frozen=True)
class Small:
    """Nine roads and a model."""

    city: City
    model: HOSER
    statistics: TimeStatistics

    def paths(self) -> PathModel:
        return PathModel(self.model, self.city.network, self.statistics)

    def next_of(self, query: Query) -> Callable[[tuple[int, ...]], dict[int, float]]:
        """A function of a path: the log-probability of each path that is one road longer, asked about one at a time.

        It must have been asked about the path without its last road.
        """
        paths, nodes = self.paths(), {}

        def after(roads: tuple[int, ...]) -> dict[int, float]:
            if len(roads) == 1:
                node = paths.start(query)
            else:
                before = nodes[roads[:-1]]
                node = before.next.node(before.next.rows()[roads[-1]], before)
            if not paths.candidates(node.road):
                return {}
            nodes[roads] = node
            paths.extend([node], [query])
            return {road: node.next.answers.log_prob[row] for road, row in node.next.rows().items()}

        return functools.cache(after)


def make_small_city(folder: Path) -> Small:
    """Write the network to `folder`; its model has weights that no training has touched."""
    places = [(0, 0), (1, 1), (1, -1), (2, 0), (3, 1), (3, -1), (4, 0), (3, 3), (-1, 0)]
    polylines = [
        f"[[116.{300 + 3 * x:03}, 39.{300 + 3 * y:03}], [116.{302 + 3 * x:03}, 39.{300 + 3 * y:03}]]" for x, y in places
    ]
    write_roads(folder, polylines, RELATIONS)
    for split in ("train", "val", "test"):
        write_trips(folder / f"{split}.csv", trip("0,1,3,4,6"), trip("0,2,3,5,6"), trip("0,1,3,0,2"))
    config = load_config("Small", overrides=SMALL)
    city = load_city("Small", config, folder)
    torch.manual_seed(4)
    model = HOSER(config, city.features).eval()
    return Small(city, model, TimeStatistics.from_trips(city.trips("train")))
