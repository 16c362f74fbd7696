"""train.csv, val.csv, test.csv -> trips as flat ragged arrays, checked against the road network."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from utils.data.csv_reader import Chunk, parse_integers, read_chunks, without_garbage_collection
from utils.data.road_network import RoadNetwork
from utils.errors import UserError
from utils.runtime.progress import progress

Ints = NDArray[np.int64]

MAX_LEN_KEY = "trajectory_encoder_config.max_len"
REACHED = "reached"  # what `status` is of a generated trip that ends at its destination
TIME_WIDTH = len("2015-11-05T08:01:14Z")
# ISO 8601 as it is met with: `T` or a blank, a fraction of a second, `Z`, an offset, or nothing.
TIME = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?:\.\d+)?"
    r" ?(?P<offset>Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?",
    re.ASCII | re.IGNORECASE,
)


def _none() -> Ints:
    return np.empty(0, np.int64)


def _no_flags() -> NDArray[np.bool_]:
    return np.empty(0, np.bool_)


@dataclass(frozen=True)
class Trips:
    """Trips, packed one after the other. n trips, P positions (roads of all trips)."""

    offset: Ints  # [n + 1], trip i is positions offset[i] to offset[i + 1]
    road_id: NDArray[np.int32]  # [P]
    time_s: Ints  # [P], seconds since 1970 of entering the road, by the clock on the wall
    label: NDArray[np.int32]  # [P], index of the next road among the candidates; 0 at a destination
    line: Ints = field(default_factory=_none)  # [n], of the file; empty for trips of no file
    number: Ints = field(default_factory=_none)  # [n], in the file, malformed ones counted, from 1
    is_missed: NDArray[np.bool_] = field(default_factory=_no_flags)  # [n], generated, and not to its destination
    skipped: int = 0  # malformed trips that were left out
    first_skipped: tuple[int, str] | None = None  # line of the first of them, and what is wrong with it

    def __len__(self) -> int:
        return len(self.offset) - 1

    def select(self, keep: NDArray[np.bool_]) -> "Trips":
        """The trips where `keep` [n] is true."""
        lengths = np.diff(self.offset)
        positions = np.repeat(keep, lengths)
        return dataclasses.replace(
            self,
            offset=np.concatenate([[0], np.cumsum(lengths[keep])]),
            road_id=self.road_id[positions],
            time_s=self.time_s[positions],
            label=self.label[positions],
            line=self.line[keep],
            number=self.number[keep],
            is_missed=self.is_missed[keep] if len(self.is_missed) else self.is_missed,
        )


@dataclass(frozen=True)
class TimeStatistics:
    """Mean and population deviation of log1p(seconds to the next road) in train.csv."""

    mean: float
    std: float

    @staticmethod
    def from_trips(train: Trips) -> "TimeStatistics":
        log_time = np.log1p(step_seconds(train).astype(np.float32))
        # All steps may take equally long; then there is nothing to scale.
        return TimeStatistics(float(log_time.mean()), float(log_time.std()) or 1.0)


def step_seconds(trips: Trips) -> np.ndarray:
    """Seconds from each step to the next road, [S], trip after trip."""
    is_step = np.ones(len(trips.road_id), dtype=bool)
    is_step[trips.offset[1:] - 1] = False
    step = np.nonzero(is_step)[0]
    return trips.time_s[step + 1] - trips.time_s[step]


class BadTripError(Exception):
    """What is wrong with one row."""


def read_trips(
    path: Path,
    network: RoadNetwork,
    on_bad_trip: str = "error",
    max_len: int | None = None,
    status: str = REACHED,
) -> Trips:
    """Read a split file, or any CSV with `rid_list` and `time_list`.

    Args:
        path: the file.
        network: the roads that the trips run on.
        on_bad_trip: "error" stops at the first bad trip; "skip" leaves bad trips out and says how many.
        max_len: roads before the destination, from which a trip is bad because the model cannot take it.
        status: "reached" leaves out generated trips that end elsewhere than at their destination; "all" does not.

    Raises:
        UserError: a bad trip, by file and line; or no trips.
    """
    return usable_trips(parse_trips(path, network), path, on_bad_trip, max_len, status)


def usable_trips(
    trips: Trips, path: Path, on_bad_trip: str, max_len: int | None = None, status: str = REACHED
) -> Trips:
    """The trips that `path` has for a model, from what `parse_trips` found in it; arguments as for `read_trips`.

    Raises:
        UserError: as `read_trips`.
    """
    if status == REACHED and trips.is_missed.any():
        missed = int(trips.is_missed.sum())
        if missed == len(trips):
            raise UserError(f"{path}: no trips but {missed} generated ones that do not reach their destination")
        logger.warning(
            f"{path}: left out {missed} generated trip{'s' * (missed > 1)} of {len(trips)}, which "
            f"{'do' if missed > 1 else 'does'} not reach the destination (--set data.status=all takes all)"
        )
        trips = trips.select(~trips.is_missed)
    steps = np.diff(trips.offset) - 1
    too_long = steps > (max_len or np.inf)
    bad = [trips.first_skipped] if trips.first_skipped else []
    if too_long.any():
        i = int(too_long.argmax())
        reason = f"{steps[i]} roads before the destination, expected at most {max_len}; raise {MAX_LEN_KEY}"
        bad.append((int(trips.line[i]), f"trip {trips.number[i]}: {reason}"))
    skipped, left = trips.skipped + int(too_long.sum()), int((~too_long).sum())
    if bad:
        line, reason = min(bad)
        if on_bad_trip == "error":
            advice = "; --set data.on_bad_trip=skip leaves such trips out" if left else ""
            raise UserError(f"{path}, line {line}: {reason}{advice}")
        kind = "" if too_long.any() else "malformed "
        if not left:
            raise UserError(f"{path}: no trips but {kind or 'unusable '}ones (line {line}: {reason})")
        first = f"{'the first: ' if skipped > 1 else ''}line {line}: {reason}"
        what = f"{kind}trip{'s' * (skipped > 1)}"
        logger.warning(f"{path}: skipped {skipped} {what} of {skipped + left} ({first})")
        if too_long.any():
            trips = dataclasses.replace(trips.select(~too_long), skipped=skipped, first_skipped=(line, reason))
    if not left:
        raise UserError(f"{path}: no trips")
    return trips


def parse_trips(path: Path, network: RoadNetwork) -> Trips:
    """All trips of the file that are well formed, and how many are not.

    Raises:
        UserError: no table of trips.
    """
    parts: list[tuple[Ints, ...]] = []
    skipped, first_skipped = 0, None
    bar = progress(None, f"reading {path.name}", None, "trips")
    with bar, without_garbage_collection():
        for chunk in read_chunks(path, ("rid_list", "time_list"), strict=False, optional=["status"]):
            part, bad = _read_chunk(chunk, network)
            bad += chunk.malformed
            skipped += len(bad)
            first_skipped = first_skipped or min(bad, default=None)
            parts.append(part)
            bar.update(len(chunk.lines))
    columns = zip(*parts, strict=True) if parts else [[_none()]] * 7
    counts, road, time_s, label, line, number, is_missed = (np.concatenate(column) for column in columns)
    return Trips(
        offset=np.concatenate([[0], np.cumsum(counts)]),
        road_id=road.astype(np.int32),
        time_s=time_s,
        label=label.astype(np.int32),
        line=line,
        number=number,
        is_missed=is_missed.astype(bool),
        skipped=skipped,
        first_skipped=first_skipped,
    )


@dataclass(frozen=True)
class ChunkTrips:
    """The good trips of a chunk of a file. n trips, P positions."""

    row: Ints  # [n], place of each in the chunk
    counts: Ints  # [n], roads of each
    road: Ints  # [P]
    time_s: Ints  # [P]
    label: Ints  # [P], as in `Trips`; -1 where roadmap.rel does not connect a road of a generated trip to the next


def read_chunk_trips(
    chunk: Chunk, network: RoadNetwork, generated: bool = False
) -> tuple[ChunkTrips, list[tuple[int, str]]]:
    """The good trips of a chunk whose first columns are roads and times; line and reason of the bad ones.

    Args:
        chunk: rows of a file.
        network: the roads that the trips run on.
        generated: whether a model made the trips: then one may have one road only, or roads that are not connected.
    """
    rid_texts = [_strip_brackets(text) for text in chunk.columns[0]]
    time_texts = [_strip_brackets(text) for text in chunk.columns[1]]
    reasons: dict[int, str] = {}  # by place in the chunk
    row = np.arange(len(chunk.lines))  # of each trip that can be read
    try:
        counts, road, time_s = _parse_texts(rid_texts, time_texts)
    except BadTripError:
        good = []
        for i, texts in enumerate(zip(rid_texts, time_texts, strict=True)):
            try:
                good.append((i, *_parse_row(*texts)))
            except BadTripError as error:
                reasons[i] = str(error)
        row = np.array([i for i, *_ in good], dtype=np.int64)
        counts = np.array([len(roads) for _, roads, _ in good], dtype=np.int64)
        road = np.concatenate([_none(), *(roads for _, roads, _ in good)])
        time_s = np.concatenate([_none(), *(times for _, _, times in good)])
    wrong, label = _check_trips(counts, road, time_s, network, generated)
    if wrong:
        reasons |= {int(row[i]): reason for i, reason in wrong.items()}
        keep_trip = np.ones(len(counts), dtype=bool)
        keep_trip[list(wrong)] = False
        keep = np.repeat(keep_trip, counts)
        row, counts = row[keep_trip], counts[keep_trip]
        road, time_s, label = road[keep], time_s[keep], label[keep]
    bad = [
        (chunk.lines[i], f"trip {chunk.numbers[i]}: {reason}{chunk.note(chunk.lines[i])}")
        for i, reason in reasons.items()
    ]
    return ChunkTrips(row, counts, road, time_s, label), bad


def _read_chunk(chunk: Chunk, network: RoadNetwork) -> tuple[tuple[Ints, ...], list[tuple[int, str]]]:
    """Columns of the good trips: roads per trip, roads, times, labels, lines, numbers, whether they miss their
    destination; and line and reason of the bad ones.
    """
    good, bad = read_chunk_trips(chunk, network)
    line, number = (np.array(values, dtype=np.int64)[good.row] for values in (chunk.lines, chunk.numbers))
    status = chunk.columns[2]
    is_missed = np.array([text.strip() not in ("", REACHED) for text in status], dtype=bool)
    missed = is_missed[good.row] if status else _no_flags()
    return (good.counts, good.road, good.time_s, good.label, line, number, missed), bad


def _strip_brackets(text: str) -> str:
    text = text.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _parse_texts(rid_texts: Sequence[str], time_texts: Sequence[str]) -> tuple[Ints, Ints, Ints]:
    """Counts, roads and times of many rows at once. `BadTripError` when any row is not in the plain form."""
    counts = np.array([text.count(",") + 1 for text in rid_texts], dtype=np.int64)
    widths = np.array([len(text) + 1 for text in time_texts], dtype=np.int64)
    road = parse_integers(rid_texts)
    if road is None or not np.array_equal(widths, counts * (TIME_WIDTH + 1)):
        raise BadTripError
    times = parse_times(",".join(time_texts) + ",") if len(time_texts) else np.empty(0, np.int64)
    if times is None:
        raise BadTripError
    return counts, road, times


def parse_times(text: str) -> Ints | None:
    """Seconds since 1970 of `2015-11-05T08:01:14Z,...,` (each time with its comma); None if malformed."""
    try:
        cells = np.frombuffer(text.encode("ascii"), dtype=np.uint8).reshape(-1, TIME_WIDTH + 1)
    except ValueError:  # not ASCII (UnicodeEncodeError is one), or not a multiple of the width
        return None
    template = np.frombuffer(b"0000-00-00T00:00:00Z,", dtype=np.uint8)
    is_digit = template == ord("0")
    digits = cells[:, is_digit] - np.uint8(ord("0"))
    if (cells[:, ~is_digit] != template[~is_digit]).any() or (digits > 9).any():
        return None
    d = digits.astype(np.int64)
    year = d[:, 0] * 1000 + d[:, 1] * 100 + d[:, 2] * 10 + d[:, 3]
    month, day, hour, minute, second = (d[:, i] * 10 + d[:, i + 1] for i in range(4, 14, 2))
    if ((year < 1) | (month < 1) | (month > 12) | (hour > 23) | (minute > 59) | (second > 59)).any():
        return None
    months = (year - 1970) * 12 + month - 1
    first_day, next_first = (m.astype("M8[M]").astype("M8[D]").astype(np.int64) for m in (months, months + 1))
    if ((day < 1) | (day > next_first - first_day)).any():
        return None
    return ((first_day + day - 1) * 24 + hour) * 3600 + minute * 60 + second


def _parse_row(rid_text: str, time_text: str) -> tuple[Ints, Ints]:
    """Roads and times of one row; `BadTripError` says what is wrong with it."""
    road = parse_integers([rid_text]) if rid_text else np.empty(0, np.int64)
    if road is None:
        item = next(item for item in rid_text.split(",") if parse_integers([item]) is None)
        raise BadTripError(f"rid_list: found {item.strip()!r}, expected road ids such as 1,2,3")
    items = [item.strip(" \t\r\n'\"") for item in time_text.split(",")] if time_text else []  # lists may quote texts
    if len(items) != len(road):
        raise BadTripError(f"rid_list has {len(road)} entries and time_list {len(items)}, expected as many")
    return road, parse_moments(items)


def parse_moments(items: Sequence[str]) -> Ints:
    """Times of one trip in any form of `TIME`, to the second before.

    An offset is dropped: time of day and weekend are those of the clock on the wall. (The `Z` of the public data
    stands behind local times, too.) `BadTripError` if the trip has several offsets, whose clocks differ.
    """
    plain, offsets = [], {}
    for item in items:
        match = TIME.fullmatch(item)
        if match is None:
            raise _bad_time(item)
        plain.append(f"{match['day']}T{match['time']}Z,")
        offsets.setdefault(_plain_offset(match["offset"]), item)
    if len(offsets) > 1:
        first, second, *_ = offsets.values()
        raise BadTripError(f"time_list: found {first!r} and {second!r}, expected one offset for all times of a trip")
    times = parse_times("".join(plain))
    if times is None:
        raise _bad_time(next(item for item, text in zip(items, plain, strict=True) if parse_times(text) is None))
    return times


def _plain_offset(text: str | None) -> str:
    """Z, +00 and -00:00 are one."""
    digits = (text or "no offset").upper().replace(":", "").replace("Z", "+00").ljust(5, "0")
    return "+0000" if digits == "-0000" else digits


def _bad_time(item: str) -> BadTripError:
    return BadTripError(f"time_list: found {item!r}, expected a time such as 2015-11-05T08:01:14Z")


def _check_trips(
    counts: Ints, road: Ints, time_s: Ints, network: RoadNetwork, generated: bool
) -> tuple[dict[int, str], Ints]:
    """What is wrong with trips (by index), and the rank of each next road among the candidates [P]."""
    reasons: dict[int, str] = {}
    trip = np.repeat(np.arange(len(counts)), counts)
    offset = np.cumsum(counts) - counts

    def blame(positions: Ints, describe) -> None:
        for p in positions:
            if trip[p] not in reasons:
                reasons[int(trip[p])] = describe(p, p - offset[trip[p]] + 1)

    least = 1 if generated else 2
    for i in np.nonzero(counts < least)[0]:
        reasons[int(i)] = f"rid_list has {counts[i]} road{'' if counts[i] == 1 else 's'}, expected {least} or more"
    outside = (road < 0) | (road >= network.num_roads)
    blame(
        np.nonzero(outside)[0],
        lambda p, place: f"position {place}: found road {road[p]}, expected ids from 0 to {network.num_roads - 1}",
    )
    has_next = np.ones(len(road), dtype=bool)
    has_next[np.cumsum(counts)[counts > 0] - 1] = False
    step = np.nonzero(has_next)[0]
    blame(
        step[time_s[step + 1] < time_s[step]],
        lambda p, place: f"time_list runs backwards after position {place}",
    )
    label = np.zeros(len(road), dtype=np.int64)
    safe = step[~outside[step] & ~outside[step + 1]]
    label[safe] = candidate_index(network, road[safe], road[safe + 1])
    if generated:
        return reasons, label
    blame(
        safe[label[safe] < 0],
        lambda p, place: (
            f"positions {place} and {place + 1}: roadmap.rel does not connect road {road[p]} to road {road[p + 1]}"
        ),
    )
    return reasons, label


def candidate_index(network: RoadNetwork, origin: Ints, destination: Ints) -> Ints:
    """Place of each destination among the candidates of its origin (the first, if repeated); -1: not one."""
    num_relations = len(network.reach_road)
    if not num_relations:
        return np.full(len(origin), -1)
    owner = np.repeat(np.arange(network.num_roads), np.diff(network.reach_ptr))
    key = owner * network.num_roads + network.reach_road
    order = np.argsort(key, kind="stable")
    wanted = origin * network.num_roads + destination
    found = order[np.minimum(np.searchsorted(key[order], wanted), num_relations - 1)]
    return np.where(key[found] == wanted, found - network.reach_ptr[origin], -1)
