"""Files of generated trips, ours or with the published columns, and which real trip each trip's query is from."""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from utils.data.csv_reader import Chunk, column_names, parse_integers, read_chunks
from utils.data.road_network import RoadNetwork
from utils.data.trips import BadTripError, Trips, parse_moments, read_chunk_trips
from utils.errors import UserError
from utils.generation.trip_files import MISSED, PUBLIC_COLUMNS, SHORT, TRIPS

Ints = NDArray[np.int64]

OWN_COLUMNS = ("rid_list", "time_list")
QUERY_COLUMNS = ("origin", "destination", "start_time", "source_row", "rank")
LEAST_CONNECTED = 0.5  # share of steps along roadmap.rel; of the trips of another city, next to none are


@dataclass(frozen=True)
class GeneratedTrips:
    """Generated trips and their queries. n trips; what a file does not say is -1."""

    source: str  # the file, or what made them
    trips: Trips  # `label` is -1 where roadmap.rel does not connect a road to the next
    origin: Ints  # [n], of the query
    destination: Ints  # [n], of the query; -1: of a file with the published columns
    start_s: Ints  # [n], of the query
    row: Ints  # [n], of the query in the file of queries, from 0

    def __len__(self) -> int:
        return len(self.trips)


def first_roads(trips: Trips) -> Ints:
    """The first road of each trip, [n]."""
    return trips.road_id[trips.offset[:-1]].astype(np.int64)


def last_roads(trips: Trips) -> Ints:
    """The last road of each trip, [n]."""
    return trips.road_id[trips.offset[1:] - 1].astype(np.int64)


def start_times_s(trips: Trips) -> Ints:
    """When each trip enters its first road, seconds since 1970, [n]."""
    return trips.time_s[trips.offset[:-1]]


def read_generated(path: Path, network: RoadNetwork, on_bad_trip: str = "error") -> GeneratedTrips:
    """Read generated trips; of a folder of `tools/generate.py`, all of them: trips.csv, short.csv and missed.csv.

    Args:
        path: a file or such a folder. Beside a trips.csv of `tools/generate.py`, the other two files are read, too.
        network: the roads that the trips run on.
        on_bad_trip: "error" stops at the first malformed trip; "skip" leaves such trips out and says how many.

    Raises:
        UserError: no such trips, roads that are not in the network, or trips of another road network.
    """
    paths = [path / TRIPS] if path.is_dir() else [path]
    if paths[0].name == TRIPS and set(QUERY_COLUMNS) <= set(column_names(paths[0])):
        paths += [file for name in (SHORT, MISSED) if (file := paths[0].with_name(name)).exists()]
    by_file = {file: _read_file(file, network, on_bad_trip) for file in paths}
    if not any(by_file.values()):
        raise UserError(f"{paths[0]}: no trips")
    for file in paths[1:]:
        if by_file[file]:
            logger.info(f"{paths[0]}: with the {sum(map(len, by_file[file])):,} trips of {file.name} beside it")
    generated = _joined(str(path), [part for parts in by_file.values() for part in parts])
    # Trips of short.csv and missed.csv have their place among the others.
    order = np.argsort(generated.row, kind="stable") if len(paths) > 1 else np.arange(len(generated))
    generated = select(generated, order)
    _check_connections(generated, paths[0])
    return generated


def select(generated: GeneratedTrips, chosen: Ints) -> GeneratedTrips:
    """The chosen trips, by index, in this order."""
    trips = generated.trips
    lengths = np.diff(trips.offset)[chosen]
    offset = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.repeat(trips.offset[chosen] - offset[:-1], lengths) + np.arange(offset[-1])
    chosen_trips = dataclasses.replace(
        trips,
        offset=offset,
        road_id=trips.road_id[positions],
        time_s=trips.time_s[positions],
        label=trips.label[positions],
        line=trips.line[chosen],
        number=trips.number[chosen],
    )
    columns = {name: getattr(generated, name)[chosen] for name in ("origin", "destination", "start_s", "row")}
    return GeneratedTrips(generated.source, chosen_trips, **columns)


def _joined(source: str, parts: list[GeneratedTrips]) -> GeneratedTrips:
    trips = [part.trips for part in parts]
    lengths = np.concatenate([np.diff(t.offset) for t in trips])
    joined = Trips(
        offset=np.concatenate([[0], np.cumsum(lengths)]),
        **{name: np.concatenate([getattr(t, name) for t in trips]) for name in ("road_id", "time_s", "label")},
        **{name: np.concatenate([getattr(t, name) for t in trips]) for name in ("line", "number")},
    )
    names = ("origin", "destination", "start_s", "row")
    return GeneratedTrips(source, joined, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _read_file(path: Path, network: RoadNetwork, on_bad_trip: str) -> list[GeneratedTrips]:
    """The good trips of a file, chunk by chunk."""
    header = set(column_names(path))
    if not header and path.is_file() and not path.stat().st_size:
        raise UserError(f"{path}: the file is empty, expected generated trips")
    columns = PUBLIC_COLUMNS if set(PUBLIC_COLUMNS) <= header else OWN_COLUMNS
    if header and not set(columns) <= header:
        wanted = f"{', '.join(OWN_COLUMNS)}, or {', '.join(PUBLIC_COLUMNS)}"
        raise UserError(f"{path}, line 1: found the columns {', '.join(sorted(header))[:200]}, expected {wanted}")
    has_queries = set(QUERY_COLUMNS) <= header
    parts, bad, later = [], [], 0
    for chunk in read_chunks(path, columns, strict=False, optional=QUERY_COLUMNS if has_queries else ()):
        plain = tuple([_plain_list(text) for text in column] for column in chunk.columns[:2])
        good, wrong = read_chunk_trips(dataclasses.replace(chunk, columns=plain), network, generated=True)
        bad += chunk.malformed + wrong
        line, number = (np.array(values, dtype=np.int64)[good.row] for values in (chunk.lines, chunk.numbers))
        offset = np.concatenate([[0], np.cumsum(good.counts)])
        trips = Trips(offset, good.road.astype(np.int32), good.time_s, good.label.astype(np.int32), line, number)
        if not has_queries:
            unknown = np.full(len(trips), -1)
            queries = first_roads(trips), unknown, start_times_s(trips), number - 1
            parts.append(GeneratedTrips(str(path), trips, *queries))
            continue
        *queries, rank = _queries(chunk, good.row, path)
        later += int((rank > 1).sum())
        parts.append(select(GeneratedTrips(str(path), trips, *queries), np.flatnonzero(rank == 1)))
    _report_bad(path, bad, sum(map(len, parts)), on_bad_trip)
    if later:
        logger.info(f"{path}: of each query its first trip is judged; {later:,} of rank 2 and more are left out")
    return [part for part in parts if len(part)]


def _plain_list(text: str) -> str:
    """Lists as Python writes them, `['2015-11-05T08:01:14Z', ...]`, without quotes and blanks."""
    return text.replace("'", "").replace('"', "").replace(", ", ",")


def _queries(chunk: Chunk, rows: Ints, path: Path) -> list[Ints]:
    """Origin, destination, start time, row and rank of the chosen rows of a chunk."""
    numbers = []
    for name, texts in zip(QUERY_COLUMNS, chunk.columns[2:], strict=True):
        texts = [texts[row].strip() for row in rows]
        try:
            values = parse_moments(texts) if name == "start_time" and texts else parse_integers(texts)
        except BadTripError as error:
            raise UserError(f"{path}: {str(error).replace('time_list', name)}") from None
        if values is None or len(values) != len(rows):
            row = next(i for i, text in enumerate(texts) if parse_integers([text]) is None or "," in text)
            raise UserError(f"{path}, line {chunk.lines[rows[row]]}: {name}: found {texts[row]!r}, expected a number")
        numbers.append(values)
    return numbers


def _report_bad(path: Path, bad: list[tuple[int, str]], good: int, on_bad_trip: str) -> None:
    if not bad:
        return
    line, reason = min(bad)
    if on_bad_trip == "error":
        advice = "; --set data.on_bad_trip=skip leaves such trips out" if good else ""
        raise UserError(f"{path}, line {line}: {reason}{advice}")
    logger.warning(f"{path}: skipped {len(bad)} malformed of {len(bad) + good} trips (line {line}: {reason})")


def _check_connections(generated: GeneratedTrips, path: Path) -> None:
    """Trips that do not run along the roads of this city are those of another one."""
    trips = generated.trips
    steps = np.diff(trips.offset) - 1
    apart = trips.label < 0
    if not steps.sum() or 1 - apart.sum() / steps.sum() >= LEAST_CONNECTED:
        return
    place = int(apart.argmax())
    trip = int(np.searchsorted(trips.offset, place, side="right")) - 1
    raise UserError(
        f"{path}, line {trips.line[trip]}: roadmap.rel does not connect road {trips.road_id[place]} to road "
        f"{trips.road_id[place + 1]}, nor the roads of {apart.sum():,} of {steps.sum():,} steps; trips of another city?"
    )


def match_queries(generated: GeneratedTrips, real: Trips) -> Ints:
    """For each generated trip, the index of the real trip that its query was made of, [n]; -1: there is none.

    A query is that of a real trip with the same first road and first time, and, where the file has the query, the
    same destination. Of several such trips it is the one in the same row, or else the i-th one for the i-th trip.
    """
    knows_destination = generated.destination >= 0
    with_destination, without = defaultdict(list), defaultdict(list)
    columns = (first_roads(real), start_times_s(real), last_roads(real))
    for i, (origin, start_s, destination) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        with_destination[origin, start_s, destination].append(i)
        without[origin, start_s].append(i)
    number = real.number.tolist()
    match = np.full(len(generated), -1)
    taken: dict[tuple[int, ...], int] = defaultdict(int)
    columns = (generated.origin, generated.start_s, generated.destination, generated.row, knows_destination)
    for i, (*key, row, knows) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        key = tuple(key if knows else key[:2])
        candidates = (with_destination if knows else without).get(key, [])
        same_row = [index for index in candidates if number[index] == row + 1]
        if same_row:
            match[i] = same_row[0]
        elif candidates:
            match[i] = candidates[min(taken[key], len(candidates) - 1)]
            taken[key] += 1
    return match


def are_sampled_from(generated: GeneratedTrips, train: Trips) -> bool:
    """Whether the queries are drawn from train.csv as published: from trips' ends, and from trips' start times."""
    if not np.isin(generated.start_s, start_times_s(train)).all():
        return False
    if (generated.destination < 0).any():
        return bool(np.isin(generated.origin, first_roads(train)).all())
    size = 1 + int(max(generated.origin.max(), generated.destination.max(), train.road_id.max()))
    pair, known = generated.origin * size + generated.destination, first_roads(train) * size + last_roads(train)
    return bool(np.isin(pair, known).all())


def reaches(generated: GeneratedTrips, real: Trips, match: Ints) -> NDArray[np.bool_]:
    """Whether each generated trip ends at the destination of its query, [n]; where that is known."""
    destination = np.where(generated.destination >= 0, generated.destination, last_roads(real)[match])
    return last_roads(generated.trips) == destination
