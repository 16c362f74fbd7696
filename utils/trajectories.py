"""train.csv, val.csv, test.csv -> trips as flat ragged arrays, checked against the road network."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from utils.config import display_path
from utils.errors import UserError
from utils.progress import progress
from utils.road_network import RoadNetwork
from utils.tables import Chunk, parse_integers, read_chunks, without_garbage_collection

Ints = NDArray[np.int64]

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
TIME_WIDTH = len("2015-11-05T08:01:14Z")


@dataclass(frozen=True)
class Trips:
    """Trips, packed one after the other. n trips, P positions (roads of all trips)."""

    offset: Ints  # [n + 1], trip i is positions offset[i] to offset[i + 1]
    road_id: NDArray[np.int32]  # [P]
    time_s: Ints  # [P], seconds since 1970 of entering the road
    next_rank: NDArray[np.int32]  # [P], rank of the next road among the candidates; 0 at a destination
    skipped: int = 0  # malformed trips that were left out
    first_skipped: str = ""  # the first of them, and what was wrong

    def __len__(self) -> int:
        return len(self.offset) - 1

    def warn_of_skipped(self, path: Path) -> None:
        """Say how many trips of `path` were left out."""
        if self.skipped:
            logger.warning(
                f"{display_path(path)}: skipped {self.skipped} malformed trips of {self.skipped + len(self)} "
                f"(the first: {self.first_skipped})"
            )


class _BadTripError(Exception):
    """What is wrong with one row."""


def read_trips(path: Path, network: RoadNetwork, on_bad_trip: str = "error") -> Trips:
    """Read a split file, or any CSV with `rid_list` and `time_list`.

    Args:
        path: the file.
        network: the roads that the trips run on.
        on_bad_trip: "error" stops at the first malformed trip; "skip" leaves malformed trips out and
            counts them.

    Raises:
        UserError: a malformed trip, by file and line; or no trips.
    """
    shown = display_path(path)
    parts: list[tuple[Ints, Ints, Ints, Ints]] = []
    bad: list[tuple[int, str]] = []  # line, reason
    bar = progress(None, f"reading {path.name}", None, "trips")
    with bar, without_garbage_collection():
        for chunk in read_chunks(path, ("rid_list", "time_list"), strict=False):
            part, chunk_bad = _read_chunk(chunk, network)
            bad += chunk.malformed + chunk_bad
            if bad and on_bad_trip == "error":
                line, reason = min(bad)
                raise UserError(f"{shown}, line {line}: {reason}; --set data.on_bad_trip=skip leaves such trips out")
            parts.append(part)
            bar.update(len(chunk.lines))
    first_skipped = f"line {min(bad)[0]}: {min(bad)[1]}" if bad else ""
    if not sum(len(counts) for counts, *_ in parts):
        raise UserError(f"{shown}: no trips" + (f" but malformed ones ({first_skipped})" if bad else ""))
    counts, road, time_s, next_rank = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Trips(
        offset=np.concatenate([[0], np.cumsum(counts)]),
        road_id=road.astype(np.int32),
        time_s=time_s,
        next_rank=next_rank.astype(np.int32),
        skipped=len(bad),
        first_skipped=first_skipped,
    )


def _read_chunk(chunk: Chunk, network: RoadNetwork) -> tuple[tuple[Ints, Ints, Ints, Ints], list[tuple[int, str]]]:
    """Roads per trip, roads, times and ranks of the good trips; line and reason of the bad ones."""
    rid_texts = [_strip_brackets(text) for text in chunk.columns[0]]
    time_texts = [_strip_brackets(text) for text in chunk.columns[1]]
    rows = list(zip(chunk.lines, chunk.numbers, strict=True))
    bad: list[tuple[int, str]] = []
    try:
        counts, road, time_s = _parse_texts(rid_texts, time_texts)
    except _BadTripError:
        good = []
        for i, texts in enumerate(zip(rid_texts, time_texts, strict=True)):
            try:
                good.append((i, *_parse_row(*texts)))
            except _BadTripError as error:
                bad.append((rows[i][0], f"trip {rows[i][1]}: {error}"))
        rows = [rows[i] for i, _, _ in good]
        counts = np.array([len(roads) for _, roads, _ in good], dtype=np.int64)
        road = np.concatenate([np.empty(0, np.int64)] + [roads for _, roads, _ in good])
        time_s = np.concatenate([np.empty(0, np.int64)] + [times for _, _, times in good])
    reasons, next_rank = _check_trips(counts, road, time_s, network)
    bad += [(rows[i][0], f"trip {rows[i][1]}: {reason}") for i, reason in reasons.items()]
    if reasons:
        keep_trip = np.ones(len(counts), dtype=bool)
        keep_trip[list(reasons)] = False
        keep = np.repeat(keep_trip, counts)
        counts, road, time_s, next_rank = counts[keep_trip], road[keep], time_s[keep], next_rank[keep]
    return (counts, road, time_s, next_rank), bad


def _strip_brackets(text: str) -> str:
    text = text.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _parse_texts(rid_texts: Sequence[str], time_texts: Sequence[str]) -> tuple[Ints, Ints, Ints]:
    """Counts, roads and times of many rows at once. `_BadTripError` when any row is not in the plain form."""
    counts = np.array([text.count(",") + 1 for text in rid_texts], dtype=np.int64)
    widths = np.array([len(text) + 1 for text in time_texts], dtype=np.int64)
    road = parse_integers(rid_texts)
    if road is None or not np.array_equal(widths, counts * (TIME_WIDTH + 1)):
        raise _BadTripError
    times = parse_times(",".join(time_texts) + ",") if len(time_texts) else np.empty(0, np.int64)
    if times is None:
        raise _BadTripError
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
    """Roads and times of one row; `_BadTripError` says what is wrong with it."""
    road = parse_integers([rid_text]) if rid_text else np.empty(0, np.int64)
    if road is None:
        item = next(item for item in rid_text.split(",") if parse_integers([item]) is None)
        raise _BadTripError(f"rid_list: found {item.strip()!r}, expected road ids such as 1,2,3")
    items = [item.strip() for item in time_text.split(",")] if time_text else []
    if len(items) != len(road):
        raise _BadTripError(f"rid_list has {len(road)} entries and time_list {len(items)}, expected as many")
    return road, np.array([_parse_time(item) for item in items], dtype=np.int64)


def _parse_time(text: str) -> int:
    try:
        moment = datetime.strptime(text, TIME_FORMAT)
    except ValueError:
        raise _BadTripError(f"time_list: found {text!r}, expected a time such as 2015-11-05T08:01:14Z") from None
    since = moment - datetime(1970, 1, 1)
    return since.days * 86_400 + since.seconds


def _check_trips(counts: Ints, road: Ints, time_s: Ints, network: RoadNetwork) -> tuple[dict[int, str], Ints]:
    """What is wrong with trips (by index), and the rank of each next road among the candidates [P]."""
    reasons: dict[int, str] = {}
    trip = np.repeat(np.arange(len(counts)), counts)
    offset = np.cumsum(counts) - counts

    def blame(positions: Ints, describe) -> None:
        for p in positions:
            if trip[p] not in reasons:
                reasons[int(trip[p])] = describe(p, p - offset[trip[p]] + 1)

    for i in np.nonzero(counts < 2)[0]:
        reasons[int(i)] = f"rid_list has {counts[i]} road{'' if counts[i] == 1 else 's'}, expected 2 or more"
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
    next_rank = np.zeros(len(road), dtype=np.int64)
    safe = step[~outside[step] & ~outside[step + 1]]
    next_rank[safe] = candidate_rank(network, road[safe], road[safe + 1])
    blame(
        safe[next_rank[safe] < 0],
        lambda p, place: (
            f"positions {place} and {place + 1}: roadmap.rel does not connect road {road[p]} to road {road[p + 1]}"
        ),
    )
    return reasons, next_rank


def candidate_rank(network: RoadNetwork, origin: Ints, destination: Ints) -> Ints:
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
