"""From where to where, and when: the queries that trips are generated for."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from utils.data.csv_reader import Chunk, column_names, parse_integers, read_chunks
from utils.data.dataset import City
from utils.data.trips import BadTripError, Trips, parse_moments
from utils.errors import UserError
from utils.generation.paths import Query

SPLITS = ("test", "val", "train")
TRAIN_OD = "train-od"
PUBLISHED_NUMBER = 5000  # of sampled queries
COLUMNS = ("origin", "destination", "start_time")


def read_queries(source: str, city: City, number: int | None, seed: int) -> list[Query]:
    """The queries that `--queries` names.

    Args:
        source: a split, `train-od`, or a CSV file: of trips, or with origin, destination and start_time.
        city: the data set.
        number: how many; the first ones of a file or split, by default all of them.
        seed: of the sampling of `train-od`.

    Raises:
        UserError: a file with unknown roads, bad times or missing columns, by line.
    """
    if source == TRAIN_OD:
        return sample_queries(city.trips("train"), city.network.num_roads, number or PUBLISHED_NUMBER, seed)
    if source in SPLITS:
        queries = queries_of(city.trips(source))
    else:
        path = Path(source)
        queries = _read_file(path, city) if _has_query_columns(path) else queries_of(city.trips_of(path))
    return queries[:number]


def queries_of(trips: Trips) -> list[Query]:
    """First road, first time and last road of each trip."""
    first, last = trips.offset[:-1], trips.offset[1:] - 1
    columns = (trips.road_id[first], trips.road_id[last], trips.time_s[first], trips.number - 1)
    return [Query(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def sample_queries(train: Trips, num_roads: int, number: int, seed: int) -> list[Query]:
    """Queries as the published code samples them: the same draws for the same seed.

    Origin and destination are those of one trip, drawn by how often a pair occurs; the start time is that of another,
    drawn without replacement (of more queries than trips, from all trips again).
    """
    first, last = train.offset[:-1], train.offset[1:] - 1
    pair, count = np.unique(train.road_id[first].astype(np.int64) * num_roads + train.road_id[last], return_counts=True)
    # float32 as the published matrix of counts is; and NumPy's legacy generator.
    weight = count.astype(np.float32)
    drawn = pair[np.random.RandomState(seed).choice(len(pair), size=number, p=weight / weight.sum())]
    generator, trips = random.Random(seed), []
    while len(trips) < number:
        trips += generator.sample(range(len(train)), min(number - len(trips), len(train)))
    start_s = train.time_s[first[trips]]
    if number > len(train):
        logger.info(f"{TRAIN_OD}: {number} queries of {len(train)} trips, so start times occur more than once")
    logger.info(f"{TRAIN_OD}: origin and destination are of one trip of train.csv, the start time is of another")
    return [
        Query(int(od) // num_roads, int(od) % num_roads, int(s), row)
        for row, (od, s) in enumerate(zip(drawn, start_s, strict=True))
    ]


def _has_query_columns(path: Path) -> bool:
    """Whether a CSV file has queries, and not (or beside) trips; if it cannot be read, its reader says why."""
    header = column_names(path)
    return set(COLUMNS) <= set(header) or "rid_list" not in header


def _read_file(path: Path, city: City) -> list[Query]:
    """The queries of a file; bad ones by the rule for bad trips."""
    queries: list[Query] = []
    bad: list[tuple[int, str]] = []
    for chunk in read_chunks(path, COLUMNS, strict=False):
        bad += chunk.malformed
        for row, number in enumerate(chunk.numbers):
            try:
                queries.append(_parse_row(chunk, row, number, city.network.num_roads))
            except BadTripError as error:
                bad.append((chunk.lines[row], f"query {number}: {error}"))
    if bad:
        line, reason = min(bad)
        if city.on_bad_trip == "error":
            advice = "; --set data.on_bad_trip=skip leaves such queries out" if queries else ""
            raise UserError(f"{path}, line {line}: {reason}{advice}")
        if queries:
            what = "query" if len(bad) == 1 else "queries"
            logger.warning(
                f"{path}: skipped {len(bad)} malformed {what} of {len(bad) + len(queries)} "
                f"({'the first: ' if len(bad) > 1 else ''}line {line}: {reason})"
            )
        else:
            raise UserError(f"{path}: no queries but malformed ones (line {line}: {reason})")
    if not queries:
        raise UserError(f"{path}: no queries")
    return queries


def _parse_row(chunk: Chunk, row: int, number: int, num_roads: int) -> Query:
    *roads, start_time = (column[row].strip() for column in chunk.columns)
    ids = []
    for name, text in zip(COLUMNS, roads, strict=False):
        value = parse_integers([text])
        if value is None or len(value) != 1 or not 0 <= value[0] < num_roads:
            raise BadTripError(f"{name}: found {text!r}, expected a road id from 0 to {num_roads - 1}")
        ids.append(int(value[0]))
    try:
        [start_s] = parse_moments([start_time])
    except BadTripError as error:
        raise BadTripError(str(error).replace("time_list", "start_time")) from None
    return Query(*ids, int(start_s), number - 1)


def real_roads(source: str, city: City) -> dict[int, Sequence[int]]:
    """The real trip of each query that is made of one, by its row: for pictures."""
    if source == TRAIN_OD or (source not in SPLITS and _has_query_columns(Path(source))):
        return {}
    trips = city.trips(source) if source in SPLITS else city.trips_of(Path(source))
    roads: list[NDArray[np.int32]] = np.split(trips.road_id, trips.offset[1:-1])
    return dict(zip((trips.number - 1).tolist(), roads, strict=True))
