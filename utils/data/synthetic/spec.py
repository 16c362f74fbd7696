"""What city to build. Imports nothing slow: the command line reads it."""

import re
from dataclasses import dataclass

from utils.errors import UserError

ROADS_LIMITS = (50, 1_200_000)
MIN_TRIPS = 10


@dataclass(frozen=True)
class CitySpec:
    """What to build. The files depend on `roads`, `trips` and `seed`, not on the name."""

    name: str = "Demo"
    roads: int = 1000  # wanted number of directed roads, met within about 3 %
    trips: int = 4000  # exact number of trips over all splits
    seed: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", self.name):
            raise UserError(f"name {self.name!r}: use letters, digits, '_', '-' and '.', with no '.' in front")
        if not ROADS_LIMITS[0] <= self.roads <= ROADS_LIMITS[1]:
            raise UserError(f"roads {self.roads}: must lie between {ROADS_LIMITS[0]} and {ROADS_LIMITS[1]}")
        if self.trips < MIN_TRIPS:
            raise UserError(f"trips {self.trips}: must be at least {MIN_TRIPS}")
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: must not be negative")
