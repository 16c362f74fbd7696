"""The files that generated trips are written to."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from utils.files.atomic import atomic_write_text
from utils.generation.paths import Query, Trip

TRIPS, SHORT, MISSED, PUBLIC, GEOJSON, MAP, RECORD = (
    "trips.csv",
    "short.csv",
    "missed.csv",
    "public.csv",
    "trips.geojson",
    "map.png",
    "generation.json",
)
COLUMNS = (
    "rid_list",
    "time_list",
    "origin",
    "destination",
    "start_time",
    "source_row",
    "rank",
    "status",
    "log_prob",
    "expansions",
)
PUBLIC_COLUMNS = ("gene_trace_road_id", "gene_trace_datetime")


@dataclass(frozen=True)
class TripRow:
    """A row of trips.csv."""

    road: list[int]
    time: list[str]  # 2015-11-05T08:01:14Z
    origin: int
    destination: int
    start_time: str
    source_row: int  # of the query in its file, from 0
    rank: int  # among the query's trips, from 1
    status: str
    log_prob: float
    expansions: int

    @staticmethod
    def from_trip(query: Query, rank: int, trip: Trip) -> "TripRow":
        start_time, *times = time_texts([query.start_s, *trip.time_s])
        return TripRow(
            trip.road,
            times,
            query.origin,
            query.destination,
            start_time,
            query.row,
            rank,
            trip.status,
            trip.log_prob,
            trip.expansions,
        )

    def fields(self) -> list[str]:
        """In the order of `COLUMNS`."""
        return [
            ",".join(map(str, self.road)),
            ",".join(self.time),
            *map(str, (self.origin, self.destination, self.start_time, self.source_row, self.rank, self.status)),
            f"{self.log_prob:.9g}",  # a float32 in full
            str(self.expansions),
        ]

    @staticmethod
    def from_fields(fields: Sequence[str]) -> "TripRow":
        """The row that `fields` gave; ValueError if these are others."""
        roads, times, origin, destination, start_time, source_row, rank, status, log_prob, expansions = fields
        return TripRow(
            [int(road) for road in roads.split(",")],
            times.split(","),
            int(origin),
            int(destination),
            start_time,
            int(source_row),
            int(rank),
            status,
            float(log_prob),
            int(expansions),
        )


def time_texts(seconds: Sequence[int]) -> list[str]:
    """Seconds since 1970 in the format of the trip files."""
    return [f"{text}Z" for text in np.datetime_as_string(np.array(seconds, dtype="M8[s]")).tolist()]


def write_rows(path: Path, rows: Iterable[TripRow]) -> None:
    """Write a file with the columns of trips.csv."""

    def write(file: TextIO) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row.fields() for row in rows)

    atomic_write_text(path, write)


def read_rows(path: Path) -> Iterator[TripRow]:
    """The rows of a file that `write_rows` wrote; ValueError or StopIteration where it is another."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        if tuple(next(reader)) != COLUMNS:
            raise ValueError(f"{path}: other columns")
        yield from map(TripRow.from_fields, reader)


def write_public(path: Path, rows: Iterable[TripRow]) -> None:
    """Write the columns of the published code: lists as Python writes them; each query's first trip."""

    def write(file: TextIO) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(PUBLIC_COLUMNS)
        writer.writerows((str(row.road), str(row.time)) for row in rows if row.rank == 1)

    atomic_write_text(path, write)


def write_geojson(path: Path, rows: Iterable[TripRow], points: NDArray[np.float64], offset: NDArray[np.int64]) -> None:
    """Write trips as lines along their roads (RFC 7946: longitude, latitude; WGS 84).

    Args:
        path: the file.
        rows: the trips.
        points: [P, 2], lon and lat of the polylines of all roads.
        offset: [N + 1], polyline i is points[offset[i] : offset[i + 1]].
    """

    def write(file: TextIO) -> None:
        file.write('{"type": "FeatureCollection", "features": [')
        for i, row in enumerate(rows):
            file.write(f"{',' if i else ''}\n{json.dumps(_feature(row, points, offset))}")
        file.write("\n]}\n")

    atomic_write_text(path, write)


def _feature(row: TripRow, points: NDArray[np.float64], offset: NDArray[np.int64]) -> dict:
    line = np.concatenate([points[offset[road] : offset[road + 1]] for road in row.road])
    # Where two roads meet, both have the point.
    is_new = np.ones(len(line), dtype=bool)
    is_new[1:] = (line[1:] != line[:-1]).any(axis=1)
    if is_new.sum() < 2:
        is_new[:2] = True  # a line has two positions, though they be the same
    return {
        "type": "Feature",
        "geometry": {"type": "LineString", "coordinates": line[is_new].tolist()},
        "properties": {
            "source_row": row.source_row,
            "rank": row.rank,
            "status": row.status,
            "origin": row.origin,
            "destination": row.destination,
            "start_time": row.start_time,
            "end_time": row.time[-1],
            "roads": len(row.road),
            "log_prob": row.log_prob,
        },
    }
