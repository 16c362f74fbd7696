"""Reading traces: CSV with a row for each fix, and Porto's form with a row for each trip, into arrays on the disk."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from utils.city_import.moments import LATEST_S, are_of_one_clock, local_shift_s, parse_times_of_fixes
from utils.city_import.trace_columns import PORTO, REQUIRED, TraceFormat
from utils.data.csv_reader import Chunk, read_chunks
from utils.errors import UserError
from utils.files.atomic import atomic_write, atomic_write_text
from utils.runtime.progress import progress
from utils.runtime.signals import take_signals

PORTO_INTERVAL_S = 15.0
INDEX, PTR, FIXES = "index.json", "ptr.npy", "fixes.bin"
COLUMNS = 3  # of the file of fixes: time, longitude, latitude, float64

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Traces:
    """The fixes of n trips; trip i is rows ptr[i] to ptr[i + 1] of the file of fixes."""

    names: list[str]  # [n], trip ids
    users: list[str]  # [n], empty where the file has none
    ptr: Ints  # [n + 1]
    fixes: Floats  # [F, 3], time in seconds since 1970 by the clock on the wall, longitude, latitude; memory-mapped
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.names)


class BadRows:
    """What to do with rows that cannot be read."""

    def __init__(self, path: Path, skip: bool):
        self.path, self.skip = path, skip
        self.number = 0
        self.first = ""

    def add(self, line: int, reason: str) -> None:
        """Note one; the first one is an error unless they are skipped.

        Raises:
            UserError: it is.
        """
        if not self.skip:
            raise UserError(f"{self.path}, line {line}: {reason}; --on_bad_trip skip leaves such rows out")
        self.first = self.first or f"line {line}: {reason}"
        self.number += 1

    def report(self) -> None:
        """Say how many were left out."""
        if self.number:
            first = f"{'the first: ' if self.number > 1 else ''}{self.first}"
            logger.warning(f"{self.path}: skipped {self.number:,} malformed row{'s' * (self.number > 1)} ({first})")


@dataclass
class _Book:
    """Trips as they come up in the file."""

    code: dict[tuple[str, str], int] = field(default_factory=dict)  # trip id and user; with no user, the latest one
    users: list[str] = field(default_factory=list)
    is_epoch: list[bool] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def find(self, name: str, user: str, is_epoch: bool) -> int:
        """The trip of a row; two users may number their trips alike."""
        code = self.code.get((name, user))
        if code is None:
            code = self.code.get((name, ""))
            if code is None or self.users[code]:
                code = self.add(name, user, is_epoch)
            self.users[code] = user  # rows before may not have had it
            self.code[name, user] = self.code[name, ""] = code
        return code

    def add(self, name: str, user: str, is_epoch: bool) -> int:
        self.names.append(name)
        self.users.append(user)
        self.is_epoch.append(is_epoch)
        return len(self.names) - 1


def load_traces(folder: Path) -> Traces | None:
    """What `read_traces` wrote; None if it has not finished."""
    if not (folder / INDEX).exists():
        return None
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    ptr = np.load(folder / PTR, allow_pickle=False)
    fixes = np.memmap(folder / FIXES, dtype=np.float64, mode="r", shape=(int(ptr[-1]), COLUMNS))
    return Traces(index["names"], index["users"], ptr, fixes, index["counts"])


def read_traces(path: Path, form: TraceFormat, skip: bool, zone: ZoneInfo | None, folder: Path) -> Traces:
    """Parse a file of traces into `folder`, in memory that does not depend on the number of fixes.

    Args:
        path: the file.
        form: what `find_format` found.
        skip: whether malformed rows are left out and counted.
        zone: of the clock on the wall, for times in seconds since 1970.
        folder: for the arrays.

    Raises:
        UserError: a malformed row, by line; or no fixes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    book, bad, counts = _Book(), BadRows(path, skip), Counter()
    rows = _porto_rows if form.kind == PORTO else _csv_rows
    trips: list[NDArray[np.int32]] = []
    with (folder / f"{FIXES}.raw").open("wb") as file:
        for trip, fixes in rows(path, form, book, bad, counts):
            take_signals()
            trips.append(trip.astype(np.int32))
            file.write(np.ascontiguousarray(fixes, dtype=np.float64).tobytes())
    bad.report()
    counts["malformed rows"] = bad.number
    trip = np.concatenate(trips) if trips else np.empty(0, np.int32)
    if not len(trip):
        raise UserError(f"{path}: no fixes{f' but {bad.number:,} malformed rows ({bad.first})' * bool(bad.number)}")
    raw = np.memmap(folder / f"{FIXES}.raw", dtype=np.float64, mode="r", shape=(len(trip), COLUMNS))
    _write_sorted(folder, trip, raw, book, zone)
    atomic_write_text(
        folder / INDEX,
        lambda file: json.dump({"names": book.names, "users": book.users, "counts": dict(counts)}, file),
    )
    (folder / f"{FIXES}.raw").unlink()
    return load_traces(folder)


def _write_sorted(folder: Path, trip: NDArray[np.int32], raw: Floats, book: _Book, zone: ZoneInfo | None) -> None:
    """The fixes in the order of the trips, those of one trip in the order of the file; clocks on the wall."""
    ptr = np.concatenate([[0], np.cumsum(np.bincount(trip, minlength=len(book.names)))])
    order = None if (np.diff(trip) >= 0).all() else np.argsort(trip, kind="stable")
    first = ptr[:-1].clip(max=len(trip) - 1)
    start = np.array(raw[first if order is None else order[first], 0])
    shift = np.zeros(len(start))
    if zone is not None:
        epoch = np.array(book.is_epoch) & (np.diff(ptr) > 0)
        # One shift for a trip, so that none is an hour longer when the clocks change.
        shift[epoch] = local_shift_s(start[epoch], zone)

    def write(file: BinaryIO) -> None:
        for begin in range(0, len(trip), 1_000_000):
            rows = slice(begin, begin + 1_000_000)
            block = np.array(raw[rows] if order is None else raw[order[rows]])
            block[:, 0] += shift[trip[rows] if order is None else trip[order[rows]]]
            file.write(block.tobytes())

    atomic_write(folder / FIXES, write)
    atomic_write(folder / PTR, lambda file: np.save(file, ptr))


def _csv_rows(
    path: Path, form: TraceFormat, book: _Book, bad: BadRows, counts: Counter[str]
) -> Iterator[tuple[Ints, Floats]]:
    """Trip [n] and time, longitude, latitude [n, 3], some rows at a time."""
    names = [form.columns[what] for what in REQUIRED]
    user = [form.columns["user"]] if "user" in form.columns else []
    bar = progress(None, f"reading {path.name}", None, "fixes")
    with bar:
        for chunk in read_chunks(path, [*names, *user], rows=100_000, strict=False, separator=form.separator):
            for line, reason in chunk.malformed:
                bad.add(line, reason)
            yield _csv_chunk(chunk, book, bad)
            bar.update(len(chunk.lines))


def _csv_chunk(chunk: Chunk, book: _Book, bad: BadRows) -> tuple[Ints, Floats]:
    ids, times, lon, lat, *user = chunk.columns
    seconds, is_epoch, wrong = parse_times_of_fixes(times)
    places, wrong_places = _places(lon, lat)
    wrong |= wrong_places
    users = user[0] if user else [""] * len(ids)
    trip = np.full(len(ids), -1, dtype=np.int64)
    for i, name in enumerate(ids):
        name = name.strip()
        if not name:
            wrong.setdefault(i, "the trip id is empty")
        if i in wrong:
            continue
        trip[i] = book.find(name, users[i].strip(), bool(is_epoch[i]))
    if not is_epoch.all() and len({item[19:] for item in set(map(str.strip, times))}) > 1:
        _refuse_other_clocks(trip, times, is_epoch, wrong)
    for i in sorted(wrong):
        bad.add(chunk.lines[i], f"{wrong[i]}{chunk.note(chunk.lines[i])}")
    good = trip >= 0
    return trip[good], np.column_stack([seconds, places])[good]


def _refuse_other_clocks(trip: Ints, times: list[str], is_epoch: NDArray[np.bool_], wrong: dict[int, str]) -> None:
    """Take out the rows whose time has another offset than the first one of their trip: their clocks differ."""
    first: dict[int, str] = {}
    for i in np.flatnonzero((trip >= 0) & ~is_epoch).tolist():
        if not are_of_one_clock(first.setdefault(int(trip[i]), times[i]), times[i]):
            wrong[i] = f"time: found {times[i]!r}, expected one offset for all times of a trip"
            trip[i] = -1


def _places(lon: list[str], lat: list[str]) -> tuple[Floats, dict[int, str]]:
    """Longitudes and latitudes [n, 2], and what is wrong with some."""
    wrong = {}
    try:
        places = np.array([lon, lat], dtype=np.str_).astype(np.float64).T.reshape(-1, 2)
    except ValueError:
        places = np.array([[_number(text) for text in pair] for pair in zip(lon, lat, strict=True)]).reshape(-1, 2)
    outside = ~((np.abs(places[:, 0]) <= 180) & (np.abs(places[:, 1]) <= 90))
    for i in np.flatnonzero(outside).tolist():
        wrong[i] = f"longitude, latitude: found {lon[i][:30]!r}, {lat[i][:30]!r}, expected degrees"
    return places, wrong


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _porto_rows(
    path: Path, form: TraceFormat, book: _Book, bad: BadRows, counts: Counter[str]
) -> Iterator[tuple[Ints, Floats]]:
    """As `_csv_rows`; a row is a trip, its fixes 15 s apart from `TIMESTAMP` on."""
    names = [form.columns[what] for what in ("trip", "time", "line")]
    optional = [form.columns.get("user", "TAXI_ID"), form.columns.get("missing", "MISSING_DATA")]
    bar = progress(None, f"reading {path.name}", None, "trips")
    with bar:
        for chunk in read_chunks(path, names, rows=5_000, strict=False, optional=optional, separator=form.separator):
            for line, reason in chunk.malformed:
                bad.add(line, reason)
            columns = [column or [""] * len(chunk.lines) for column in chunk.columns]
            trips, fixes = [np.empty(0, np.int64)], [np.empty((0, COLUMNS))]
            for line, name, time, text, user, missing in zip(chunk.lines, *columns, strict=True):
                if missing.strip().lower() == "true":
                    counts["trips with missing fixes, by the file itself"] += 1
                    continue
                try:
                    start, places = _porto_row(time, text)
                except ValueError as error:
                    bad.add(line, f"{error}{chunk.note(line)}")
                    continue
                if not len(places):
                    counts["trips without fixes"] += 1
                    continue
                code = book.add(name.strip(), user.strip(), True)
                trips.append(np.full(len(places), code))
                fixes.append(np.column_stack([start + PORTO_INTERVAL_S * np.arange(len(places)), places]))
            yield np.concatenate(trips), np.concatenate(fixes)
            bar.update(len(chunk.lines))


def _porto_row(time: str, text: str) -> tuple[float, Floats]:
    """Start and places [n, 2] of a trip; `ValueError` says what is wrong."""
    seconds, _, wrong = parse_times_of_fixes([time])
    if wrong or seconds[0] >= LATEST_S:
        raise ValueError(f"TIMESTAMP: found {time[:60]!r}, expected seconds since 1970")
    try:
        places = np.array(json.loads(text), dtype=np.float64)
        places = places if places.size else np.empty((0, 2))
        fits = places.shape == (len(places), 2) and (np.abs(places) <= (180, 90)).all()
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f"POLYLINE: found {text[:60]!r}, expected [[longitude, latitude], ...]")
    return float(seconds[0]), places
