"""Reading what FMM (Yang and Gidofalvi, 2018) has matched already: `cpath`, with times."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from utils.city_import.drives import Drive, merged
from utils.city_import.moments import local_shift_s, parse_times_of_fixes
from utils.city_import.network import City
from utils.city_import.times import strictly_ascending
from utils.city_import.trace_columns import TraceFormat
from utils.city_import.traces import BadRows
from utils.data.csv_reader import parse_integers, read_chunks
from utils.runtime.progress import progress
from utils.runtime.signals import take_signals

OPTIONAL = ("user", "opath", "offset", "length")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class FmmTrips:
    """Trips that were matched before."""

    drives: list[Drive]
    names: list[str]  # of the rows; `Drive.source` is a place in it
    users: list[str]
    counts: Counter[str]


class EdgeTable:
    """Where the edges of the network that FMM ran on lie on our roads.

    Of a GraphML these are its edges, by their `fid` or their place; of other maps the roads themselves, by `geo_id`.
    """

    def __init__(self, city: City, length_m: Floats):
        """length_m [N], of the roads."""
        self.road: dict[int, int] = {}
        self.start_m: dict[int, float] = {}
        self.length_m: dict[int, float] = {}
        for number, road in enumerate(city.roads):
            edges, lengths = (road.edges, road.edge_m) if road.edges else ([number], [float(length_m[number])])
            start = 0.0
            for edge, edge_m in zip(edges, lengths, strict=True):
                self.road[edge], self.start_m[edge], self.length_m[edge] = number, start, edge_m
                start += edge_m


def read_fmm(path: Path, form: TraceFormat, skip: bool, zone: ZoneInfo | None, city: City) -> FmmTrips:
    """The trips of FMM's result, on the roads of the city.

    Args:
        path: the file: `id`, `cpath`, `timestamp`, and, where the times are those of the fixes, `opath` (the edge of
            each fix) and, where it has them, `offset` and `length` (how far along which edge).
        form: what `find_format` found.
        skip: whether malformed rows are left out and counted.
        zone: of the clock on the wall, for times in seconds since 1970.
        city: where a path leaves it, or takes a turn that it does not have, the trip is cut.

    Raises:
        UserError: a malformed row, by line.
    """
    table = EdgeTable(city, np.array([road.length_m for road in city.roads]))
    can_follow = set(map(tuple, city.pairs.tolist()))
    trips, bad = FmmTrips([], [], [], Counter()), BadRows(path, skip)
    names = [form.columns[what] for what in ("trip", "time", "path")]
    optional = [form.columns.get(what, f"no {what}") for what in OPTIONAL]
    with progress(None, f"reading {path.name}", None, "trips") as bar:
        for chunk in read_chunks(path, names, strict=False, optional=optional, separator=form.separator):
            for line, reason in chunk.malformed:
                bad.add(line, reason)
            columns = [column or [""] * len(chunk.lines) for column in chunk.columns]
            for line, name, time, cpath, user, *details in zip(chunk.lines, *columns, strict=True):
                take_signals()
                if not cpath.strip():
                    trips.counts["traces that FMM did not match"] += 1
                    continue
                try:
                    edges, seconds = _row(cpath, time, *details, table, zone)
                except ValueError as error:
                    bad.add(line, f"{error}{chunk.note(line)}")
                    continue
                trips.names.append(name.strip())
                trips.users.append(user.strip())
                pieces = _on_roads(edges, seconds, table, can_follow, trips.counts)
                trips.drives.extend(Drive(len(trips.names) - 1, *piece) for piece in pieces)
            bar.update(len(chunk.lines))
    bad.report()
    trips.counts["malformed rows"] += bad.number
    return trips


def _row(
    cpath: str, time: str, opath: str, offset: str, length: str, table: EdgeTable, zone: ZoneInfo | None
) -> tuple[list[int], Ints]:
    """The edges of a row, and when each is entered. `ValueError` says what is wrong with it."""
    edges = _integers("cpath", cpath)
    seconds, is_epoch, wrong = parse_times_of_fixes([item.strip(" '\"") for item in _items(time)])
    if wrong:
        raise ValueError(next(iter(wrong.values())))
    if zone is not None and is_epoch.all():
        seconds = seconds + local_shift_s(seconds[:1], zone)
    if (np.diff(seconds) < 0).any():
        raise ValueError("the times run backwards")
    at = _integers("opath", opath) if opath.strip() else []
    if len(at) == len(seconds):
        seconds = _interpolated(edges, seconds, at, _floats("offset", offset), _floats("length", length), table)
    elif len(edges) != len(seconds):
        raise ValueError(
            f"found {len(seconds)} times for the {len(edges)} edges of cpath, expected as many, or opath with as many"
        )
    return edges, np.floor(seconds).astype(np.int64)


def _items(text: str) -> list[str]:
    return [item for item in text.strip().strip("[]()").split(",") if item.strip()]


def _integers(name: str, text: str) -> list[int]:
    values = parse_integers([",".join(_items(text))])
    if values is None:
        raise ValueError(f"{name}: found {text[:60]!r}, expected numbers of edges such as 12,13,20")
    return values.tolist()


def _floats(name: str, text: str) -> list[float]:
    try:
        return [float(item) for item in _items(text)]
    except ValueError:
        raise ValueError(f"{name}: found {text[:60]!r}, expected numbers") from None


def _interpolated(
    edges: list[int], seconds: Floats, at: list[int], offset: list[float], length: list[float], table: EdgeTable
) -> Floats:
    """When each edge is entered, from the edges `at` which the fixes are, and how far along these."""
    edge_m = np.array([table.length_m.get(edge, 0.0) for edge in edges])
    start = np.concatenate([[0.0], np.cumsum(edge_m)[:-1]])
    places, place = np.zeros(len(at)), 0
    for i, edge in enumerate(at):
        place = next((later for later in range(place, len(edges)) if edges[later] == edge), place)
        whole = length[i] if len(length) == len(at) else edge_m[place]
        # Offset and length are in the units of FMM's network, degrees mostly.
        share = offset[i] / whole if len(offset) == len(at) and whole > 0 else 0.5
        places[i] = start[place] + min(max(share, 0.0), 1.0) * edge_m[place]
    places = np.maximum.accumulate(places)
    leaves = np.append(np.diff(places) > 0, True)
    entered = np.interp(start, places[leaves], seconds[leaves])
    entered[0] = seconds[0]
    return entered


def _on_roads(
    edges: list[int], seconds: Ints, table: EdgeTable, can_follow: set[tuple[int, int]], counts: Counter[str]
) -> Iterator[tuple[Ints, Ints]]:
    """Roads and times, cut where the city has no such road or turn."""
    road = np.array([table.road.get(edge, -1) for edge in edges])
    counts["roads of paths that the city does not have"] += int((road < 0).sum())
    first = np.append(True, np.diff(road) != 0)
    kept, seconds = road[first], seconds[first]
    cuts = [
        i
        for i in range(1, len(kept))
        if kept[i] < 0 or kept[i - 1] < 0 or (int(kept[i - 1]), int(kept[i])) not in can_follow
    ]
    counts["trips cut where no road leads on"] += sum(kept[i] >= 0 and kept[i - 1] >= 0 for i in cuts)
    for begin, end in zip([0, *cuts], [*cuts, len(kept)], strict=True):
        if kept[begin] >= 0:
            yield merged(kept[begin:end], strictly_ascending(seconds[begin:end]))
