"""Grid cells of roads, as the teacher's tokens were made from."""

from dataclasses import dataclass

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from models.lmtad import LARGEST_SIZE
from utils.data.road_network import RoadNetwork, describe_far_roads
from utils.errors import UserError

# Tokens of the largest vocabulary that a teacher can have, less the special ones.
MAX_CELLS = LARGEST_SIZE - 8


@dataclass(frozen=True)
class Grid:
    """A uniform grid over a city; cell = row * columns + column, rows by latitude from the south."""

    rows: int
    columns: int
    cell: NDArray[np.int64]  # [N], cell of each road's centre
    origin: str = ""  # what made it, for messages: keys and bounds
    is_stretched: bool = False  # by roads that are far from all others, which `origin` names

    @property
    def num_cells(self) -> int:
        return self.rows * self.columns


def make_grid(network: RoadNetwork, cell_deg: float, downsample: int) -> Grid:
    """Grid of `cell_deg` degrees from the minimum corner of all polyline points.

    Args:
        network: the roads.
        cell_deg: `distill.grid_size`, degrees of latitude and of longitude.
        downsample: `distill.downsample`; this many cells in each direction are merged into one.

    Raises:
        UserError: the grid has more cells than a teacher can have tokens.
    """
    low, high = network.bounds
    # A side of more cells than a whole grid may have need not be counted exactly.
    columns, rows = (int(min(span / cell_deg, 10.0 * MAX_CELLS)) + 1 for span in high - low)
    rows, columns = max(rows // downsample, 1), max(columns // downsample, 1)
    origin = _describe_origin(network, cell_deg, downsample, rows, columns)
    if rows * columns > MAX_CELLS:
        raise UserError(f"{origin}, more than the {MAX_CELLS:,} that a teacher can have; {LARGER_CELLS}")
    place = np.floor((network.center - low) / cell_deg).astype(np.int64) // downsample
    column, row = np.clip(place[:, 0], 0, columns - 1), np.clip(place[:, 1], 0, rows - 1)
    return Grid(rows, columns, row * columns + column, origin, bool(describe_far_roads(network)))


LARGER_CELLS = "raise distill.grid_size or distill.downsample"


def _describe_origin(network: RoadNetwork, cell_deg: float, downsample: int, rows: int, columns: int) -> str:
    low, high = (f"[{lon:.6g}, {lat:.6g}]" for lon, lat in network.bounds)
    far = describe_far_roads(network)
    keys = f"distill.grid_size {cell_deg:g}" + (f" and distill.downsample {downsample}" if downsample > 1 else "")
    return f"{keys} makes {rows} x {columns} cells of this city (roads from {low} to {high}" + (
        f"; roadmap.geo, {far}, lies far from the others)" if far else ")"
    )


def warn_of_stretched_grid(grid: Grid) -> None:
    """Say so if a few roads make the grid much larger than the city."""
    if grid.is_stretched:
        logger.warning(f"{grid.origin}; {LARGER_CELLS}, or correct the road")


def describe_grid(grid: Grid) -> str:
    """Coverage, roads per cell and the fullest cell, in one line."""
    cells, counts = np.unique(grid.cell, return_counts=True)
    fullest = int(counts.argmax())
    return (
        f"grid of {grid.rows} x {grid.columns} cells: {len(cells)} hold roads ({len(cells) / grid.num_cells:.1%}), "
        f"{counts.mean():.1f} roads each on average, {counts[fullest]} in the fullest (cell {cells[fullest]})"
    )
