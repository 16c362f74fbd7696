"""Which column of a file of traces is what."""

import csv
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files.file_kinds import foreign_kind, not_utf8

CSV, PORTO, FMM = "csv", "porto", "fmm"
# The names that columns are known by, when --columns does not say otherwise.
NAMES = {
    "trip": ["trip_id", "trip", "traj_id", "trajectory_id", "tid", "mm_id", "journey_id", "track_id", "trip_no", "id"],
    "time": ["time", "timestamp", "datetime", "date_time", "t", "utc", "gps_time", "recorded_at"],
    "longitude": ["longitude", "lon", "lng", "long", "x"],
    "latitude": ["latitude", "lat", "y"],
    "user": [
        "user_id",
        "entity_id",
        "driver_id",
        "taxi_id",
        "vehicle_id",
        "device_id",
        "user",
        "driver",
        "vehicle",
        "uid",
    ],
}
REQUIRED = ("trip", "time", "longitude", "latitude")
PORTO_COLUMNS = {
    "trip": "TRIP_ID",
    "time": "TIMESTAMP",
    "line": "POLYLINE",
    "user": "TAXI_ID",
    "missing": "MISSING_DATA",
}
FMM_NAMES = {
    "trip": ["id", *NAMES["trip"]],
    "time": ["timestamp", "time", "time_list", "timestamps"],
    "path": ["cpath"],
}


@dataclass(frozen=True)
class TraceFormat:
    """How a file of traces is read."""

    kind: str  # csv, porto or fmm
    columns: dict[str, str]  # what is meant -> name in the file
    separator: str = ","


def parse_columns(text: str) -> dict[str, str]:
    """`trip=TripID,time=Timestamp` or four or five names: trip, time, longitude, latitude, user.

    Raises:
        UserError: it is neither.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    if items and all("=" in item for item in items):
        pairs = [item.split("=", 1) for item in items]
        columns = {key.strip(): name.strip() for key, name in pairs}
        if set(columns) <= set(NAMES):
            return columns
    elif len(items) in (4, 5) and "=" not in text:
        return dict(zip((*REQUIRED, "user"), items, strict=False))
    raise UserError(
        f"--columns: found {text!r}, expected names for {', '.join(NAMES)}, such as "
        "trip=TripID,time=Timestamp,longitude=lon,latitude=lat"
    )


def find_format(path: Path, named: dict[str, str]) -> TraceFormat:
    """Know the kind of a file by its header line.

    Args:
        path: the file.
        named: columns that the user has named.

    Raises:
        UserError: the file cannot be read, or a column is missing.
    """
    header, separator = _header(path)
    by_lower = {name.lower(): name for name in reversed(header)}
    if "polyline" in by_lower and not named:
        columns = {what: by_lower[name.lower()] for what, name in PORTO_COLUMNS.items() if name.lower() in by_lower}
        return TraceFormat(PORTO, _complete(path, columns, ("trip", "time", "line"), header), separator)
    if "cpath" in by_lower and not {"longitude", "latitude"} & set(named):
        optional = {what: name for what in ("opath", "offset", "length") if (name := by_lower.get(what))}
        found = {what: _first(names, by_lower) for what, names in (FMM_NAMES | {"user": NAMES["user"]}).items()}
        columns = {what: name for what, name in found.items() if name} | optional | named
        return TraceFormat(FMM, _complete(path, columns, ("trip", "time", "path"), header), separator)
    found = {what: _first(names, by_lower) for what, names in NAMES.items()}
    columns = {what: name for what, name in found.items() if name} | named
    return TraceFormat(CSV, _complete(path, columns, REQUIRED, header), separator)


def _first(names: list[str], by_lower: dict[str, str]) -> str | None:
    return next((by_lower[name] for name in names if name in by_lower), None)


def _complete(path: Path, columns: dict[str, str], required: tuple[str, ...], header: list[str]) -> dict[str, str]:
    missing = [what for what in required if what not in columns]
    absent = [name for name in columns.values() if name not in header]
    if not missing and not absent:
        return columns
    wanted = ", ".join(absent) or f"for the {' and the '.join(missing)}"
    raise UserError(
        f"{path}, line 1: no column {wanted} (found: {', '.join(header)[:200] or 'none'}); name the columns, such as "
        "--columns trip=TripID,time=Timestamp,longitude=lon,latitude=lat"
    )


def _header(path: Path) -> tuple[list[str], str]:
    """Names of the columns, and what is between them: a comma, or what there is more of in the first line."""
    try:
        if kind := foreign_kind(path):
            raise UserError(f"{path}: {kind}")
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(1_000_000)
    except UnicodeDecodeError:
        raise UserError(f"{path}{not_utf8(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    separator = max(",;\t|", key=line.count)
    return [name.strip() for name in next(csv.reader([line], delimiter=separator), [])], separator
