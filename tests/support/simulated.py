"""What tests of an import know of the city that they import."""

from dataclasses import dataclass
from pathlib import Path

from utils.data.trips import Trips


@dataclass(frozen=True)
class Simulated:
    """Files as an import reads them, and what is behind them."""

    folder: Path  # with map.osm and traces.csv
    trips: Trips  # on the roads that an import finds
