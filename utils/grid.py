"""Grid cells of roads, as the teacher's tokens were made from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError
from utils.road_network import RoadNetwork


@dataclass(frozen=True)
class Grid:
    """A uniform grid over a city; cell = row * columns + column, rows by latitude from the south."""

    rows: int
    columns: int
    cell: NDArray[np.int64]  # [N], cell of each road's centre

    @property
    def num_cells(self) -> int:
        return self.rows * self.columns


def make_grid(network: RoadNetwork, cell_deg: float, downsample: int) -> Grid:
    """Grid of `cell_deg` degrees from the minimum corner of all polyline points.

    Args:
        network: the roads.
        cell_deg: `distill.grid_size`, degrees of latitude and of longitude.
        downsample: `distill.downsample`; so many cells in each direction are one.

    Raises:
        UserError: a cell so small that the grid has more cells than a teacher can have tokens.
    """
    low, high = network.bounds
    columns, rows = (int(span / cell_deg) + 1 for span in high - low)
    if rows * columns > 2**31:
        raise UserError(
            f"distill.grid_size: found {cell_deg}, which makes {rows} x {columns} cells of this city; "
            "expected degrees, such as 0.001"
        )
    rows, columns = max(rows // downsample, 1), max(columns // downsample, 1)
    place = np.floor((network.center - low) / cell_deg).astype(np.int64) // downsample
    column, row = np.clip(place[:, 0], 0, columns - 1), np.clip(place[:, 1], 0, rows - 1)
    return Grid(rows, columns, row * columns + column)


def describe_grid(grid: Grid) -> str:
    """Coverage, roads per cell and the densest cell, in one line."""
    cells, counts = np.unique(grid.cell, return_counts=True)
    densest = int(counts.argmax())
    return (
        f"grid of {grid.rows} x {grid.columns} cells: {len(cells)} hold roads ({len(cells) / grid.num_cells:.1%}), "
        f"{counts.mean():.1f} roads per such cell, densest cell {cells[densest]} with {counts[densest]}"
    )
