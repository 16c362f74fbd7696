"""Which token stands for each road: that of its grid cell, as LM-TAD was published, or one of its own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray

from utils.config_sections import CELLS, ROADS, DistillConfig
from utils.data.road_network import RoadNetwork
from utils.distillation.grid import LARGER_CELLS, Grid, describe_grid, make_grid, warn_of_stretched_grid
from utils.errors import UserError
from utils.files.checksums import content_digest

CENTER_DECIMALS = 6  # of a degree, about 0.1 m: below that, the last bits of another machine's sums


@dataclass(frozen=True)
class RoadTokens:
    """The tokens of a city's roads; the special tokens come behind them."""

    kind: str  # "cells" or "roads", as `teacher.tokens`
    token: NDArray[np.int64]  # [N]
    count: int  # cells of the grid, or roads
    origin: str  # for messages: what made this many
    grid: Grid | None = None  # of cells

    @property
    def fewer(self) -> str:
        """What makes fewer of them, for messages."""
        return f"{LARGER_CELLS}, or " if self.kind == CELLS else ""

    def describe(self) -> str:
        """In one line; a grid that a few roads make much larger than the city gets a warning beside."""
        if self.grid is None:
            return f"{self.count:,} roads, each with a token of its own"
        warn_of_stretched_grid(self.grid)
        return describe_grid(self.grid)


def cell_tokens(grid: Grid) -> RoadTokens:
    """token = cell, so that the roads of a cell share one."""
    return RoadTokens(CELLS, grid.cell, grid.num_cells, grid.origin, grid)


def make_tokens(kind: str, network: RoadNetwork, config: DistillConfig) -> RoadTokens:
    """Tokens of the given kind, `cells` of the grid that `config` describes, or `roads`.

    Raises:
        UserError: the grid has more cells than a teacher can have tokens.
    """
    if kind == ROADS:
        return RoadTokens(ROADS, np.arange(network.num_roads), network.num_roads, f"{network.num_roads:,} roads")
    return cell_tokens(make_grid(network, config.grid_size, config.downsample))


@dataclass(frozen=True)
class NetworkKey:
    """The road network that tokens of roads belong to, as a teacher file records it (`network`)."""

    roads: int
    relations: str  # hash of what is reachable
    centers: str  # hash of the roads' centres

    @staticmethod
    def from_network(network: RoadNetwork) -> "NetworkKey":
        """Of a city."""
        relations = [torch.from_numpy(np.asarray(values)) for values in (network.reach_ptr, network.reach_road)]
        centers = torch.from_numpy(np.round(network.center, CENTER_DECIMALS) + 0.0)  # + 0.0: there is no -0.0
        return NetworkKey(network.num_roads, content_digest(relations), content_digest(centers))

    def check(self, network: RoadNetwork, path: Path) -> None:
        """Compare with a city's. Who edits one of the two files has the same roads still, which is announced only.

        Raises:
            UserError: the teacher in `path` was trained on another road network.
        """
        found = NetworkKey.from_network(network)
        others = {"roadmap.rel": self.relations != found.relations, "roadmap.geo": self.centers != found.centers}
        if self.roads != found.roads or all(others.values()):
            another = "as many, but other ones" if self.roads == found.roads else f"{found.roads:,}"
            raise UserError(
                f"{path}: has a token for each of the {self.roads:,} roads that it was trained on, and this city has "
                f"{another}; take the teacher of this city, or train one"
            )
        for name, is_other in others.items():
            if is_other:
                logger.warning(f"{name} is not the one that the teacher in {path} was trained with")
