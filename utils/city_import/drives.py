"""Trips on the roads of the city, and the parts of the work that are kept on the disk."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.city_import.times import strictly_ascending
from utils.files.atomic import atomic_write

MAX_ROADS = 1000  # of a trip: half of what the model takes by default
BIN_M = 2.0  # of the histogram of distances between fixes and roads
BINS = 100

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Drive:
    """A trip: roads, and when each is entered."""

    source: int  # number of the trip in the file of traces that it is from
    roads: Ints  # [L]
    time_s: Ints  # [L], seconds since 1970 by the clock on the wall, strictly ascending


@dataclass(frozen=True)
class Part:
    """The outcome of a block of traces."""

    drives: list[Drive]
    counts: Counter[str]  # of what was left out, by reason
    distances: Ints  # [BINS], fixes by their distance from their road, the last bin being all beyond

    def write(self, path: Path) -> None:
        """Write the part as a whole."""
        arrays = {
            "source": np.array([drive.source for drive in self.drives], dtype=np.int64),
            "length": np.array([len(drive.roads) for drive in self.drives], dtype=np.int64),
            "roads": _joined([drive.roads for drive in self.drives]).astype(np.int32),
            "time_s": _joined([drive.time_s for drive in self.drives]),
            "counts": np.frombuffer(json.dumps(self.counts).encode(), dtype=np.uint8),
            "distances": self.distances,
        }
        atomic_write(path, lambda file: np.savez(file, **arrays))

    @staticmethod
    def read(path: Path) -> "Part":
        """What `write` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            cuts = np.cumsum(arrays["length"])[:-1]
            roads, time_s = np.split(arrays["roads"].astype(np.int64), cuts), np.split(arrays["time_s"], cuts)
            sources = arrays["source"].tolist()
            drives = [Drive(*item) for item in zip(sources, roads, time_s, strict=True)] if sources else []
            return Part(drives, Counter(json.loads(arrays["counts"].tobytes())), arrays["distances"])


def _joined(arrays: Iterable[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def usable(drives: Iterable[Drive], min_roads: int, min_seconds: float, counts: Counter[str]) -> list[Drive]:
    """The drives that are long enough, and pieces of those that are too long; `counts` counts the others."""
    kept = []
    for drive in drives:
        if len(drive.roads) < min_roads:
            counts["trips of too few roads"] += 1
        elif drive.time_s[-1] - drive.time_s[0] < min_seconds:
            counts["trips of too few seconds"] += 1
        elif len(drive.roads) > MAX_ROADS:
            counts["trips cut because they have too many roads"] += 1
            pieces = np.array_split(np.arange(len(drive.roads)), -(-len(drive.roads) // MAX_ROADS))
            kept += [Drive(drive.source, drive.roads[piece], drive.time_s[piece]) for piece in pieces]
        else:
            kept.append(drive)
    return kept


def merged(roads: Ints, time_s: Ints) -> tuple[Ints, Ints]:
    """A road that stands twice in a row becomes one, entered at the first time."""
    first = np.append(True, np.diff(roads) != 0)
    return roads[first], strictly_ascending(time_s[first])
