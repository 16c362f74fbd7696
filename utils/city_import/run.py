"""Importing a city: network, traces, matching, splits, report. What is done is kept, and the same command goes on."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from utils.city_import.blocks import Work, block_size, estimate_noise, match_blocks, part_path
from utils.city_import.card import dataset_card
from utils.city_import.cleaning import CleaningOptions
from utils.city_import.drives import BINS, Drive, Part, usable
from utils.city_import.fmm import read_fmm
from utils.city_import.graphml import is_graphml, read_graphml
from utils.city_import.moments import time_zone
from utils.city_import.network import ROADS, City, build_city, write_city
from utils.city_import.osm import Box, read_osm
from utils.city_import.report import ReportData, draw_report, examples, median_distance_m
from utils.city_import.splits import SPLITS, SplitOptions, check_users, split_drives, without_repeats, write_split
from utils.city_import.tags import RoadChoice
from utils.city_import.trace_columns import FMM, TraceFormat, find_format, parse_columns
from utils.city_import.traces import Traces, load_traces, read_traces
from utils.errors import UserError
from utils.files.atomic import atomic_write, atomic_write_text, make_folder, move
from utils.files.locks import folder_lock

VERSION = 1  # raise it when the same options give other trips
RECORD, REPORT, CARD = "import.json", "report.png", "README.md"
FILES = ("roadmap.geo", "roadmap.rel", ROADS, *(f"{split}.csv" for split in SPLITS), REPORT, CARD, RECORD)
SITE = ".import"  # folder of the work that is not finished
READY = "ready.json"  # in it, when only moving its files is left


@dataclass(frozen=True)
class ImportOptions:
    """What is imported, and how."""

    name: str
    map_path: Path
    traces_path: Path
    folder: Path
    network: str = "drive"
    u_turns: str = "dead_ends"
    box: Box | None = None
    columns: str = ""
    timezone: str = ""
    skip: bool = False  # malformed rows
    noise_m: float | None = None  # None: estimated
    cleaning: CleaningOptions = field(default_factory=CleaningOptions)
    split: SplitOptions = field(default_factory=SplitOptions)

    def identity(self) -> dict[str, Any]:
        """What decides the outcome: options, and hashes of the two files."""
        options = dataclasses.asdict(self)
        for key in ("name", "folder", "map_path", "traces_path"):
            del options[key]
        files = {"map": _digest(self.map_path), "traces": _digest(self.traces_path)}
        return json.loads(json.dumps({"version": VERSION, **files, "options": options}))


@dataclass(frozen=True)
class Matched:
    """All trips, and what became of the traces."""

    drives: list[Drive]
    traces: int
    users: list[str]
    counts: Counter[str]
    distances: np.ndarray
    noise_m: float | None
    trips_per_s: float | None


def import_city(options: ImportOptions, workers: int) -> dict[str, Any]:
    """Write a complete data set; what is there of an interrupted import with the same options is used.

    Returns:
        The record in `import.json`.

    Raises:
        UserError: a mistake in the files or options, or the folder has other files.
    """
    choice = RoadChoice.parse(options.network)
    zone = time_zone(options.timezone) if options.timezone else None
    form = find_format(options.traces_path, parse_columns(options.columns) if options.columns else {})
    identity = options.identity()
    make_folder(options.folder)
    with folder_lock(options.folder):
        key = hashlib.blake2b(json.dumps(identity).encode(), digest_size=6).hexdigest()
        site = options.folder / SITE / key
        if _is_there(options.folder, site, identity):
            logger.info(f"{options.folder}: this import is there already")
            return json.loads((options.folder / RECORD).read_text(encoding="utf-8"))
        if not (site / READY).exists():
            make_folder(site)
            city, network_counts = _network(options, choice)
            write_city(site, city)
            if form.kind == FMM:
                matched = _matched_before(options, form, zone, city)
            else:
                traces = load_traces(site) or read_traces(options.traces_path, form, options.skip, zone, site)
                check_users(traces.users, options.split)  # now, and not after hours of matching
                matched = _match(options, city, traces, site, workers)
            _write_trips(options, identity, site, city, network_counts, matched)
        _publish(options.folder, site)
        return json.loads((options.folder / RECORD).read_text(encoding="utf-8"))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _is_there(folder: Path, site: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder has this very import.

    Raises:
        UserError: it has files that are not of this import.
    """
    present = [name for name in (*FILES, "road_network_partition", "zone_trans_mat.npy") if (folder / name).exists()]
    if not present or (site / READY).exists():
        return False
    try:
        same = json.loads((folder / RECORD).read_text(encoding="utf-8"))["identity"] == identity
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if same and all((folder / name).exists() for name in FILES):
        return True
    kind = "an import with other options or of other files" if RECORD in present else f"files such as {present[0]}"
    raise UserError(f"{folder}: has {kind}, which stays as it is; name another with --name or --data_dir, or remove it")


def _network(options: ImportOptions, choice: RoadChoice) -> tuple[City, Counter[str]]:
    path = options.map_path
    read = read_graphml if is_graphml(path) else read_osm
    streets = read(path, choice, options.box)
    city = build_city(streets, options.u_turns, path)
    counts = +streets.counts
    logger.info(f"{path}: {len(city.roads):,} roads, {len(city.pairs):,} relations")
    return city, counts


def _match(options: ImportOptions, city: City, traces: Traces, site: Path, workers: int) -> Matched:
    points, offset = packed_lines(city)
    work = Work(points, offset, city.pairs, site, options.cleaning, options.noise_m or 0.0)
    _check_overlap(options, points, traces)
    if options.noise_m is None:
        work = dataclasses.replace(work, noise_m=estimate_noise(work, traces))
        logger.info(f"{options.traces_path}: the fixes have a noise of {work.noise_m:g} m (standard deviation)")
    speed = match_blocks(work, site, workers)
    parts = [Part.read(part_path(site, first)) for first in range(0, len(traces), block_size(len(traces)))]
    counts = Counter(traces.counts)
    for part in parts:
        counts.update(part.counts)
    drives = [drive for part in parts for drive in part.drives]
    distances = sum((part.distances for part in parts), np.zeros(BINS, np.int64))
    return Matched(drives, len(traces), traces.users, counts, distances, work.noise_m, speed)


def _check_overlap(options: ImportOptions, points: np.ndarray, traces: Traces) -> None:
    """Refuse traces that are somewhere else."""
    low, high = points.min(axis=0) - 0.01, points.max(axis=0) + 0.01
    step = max(1, len(traces.fixes) // 100_000)
    places = np.array(traces.fixes[::step, 1:])
    if ((places >= low) & (places <= high)).all(axis=1).any():
        return
    middle, turned = np.median(places, axis=0), places[:, ::-1]
    swapped = ((turned >= low) & (turned <= high)).all(axis=1).any()
    advice = "; longitude and latitude are swapped: see --columns" if swapped else ""
    raise UserError(
        f"{options.traces_path}: no fix is near the roads of {options.map_path} (longitude {low[0]:.3f} to "
        f"{high[0]:.3f}, latitude {low[1]:.3f} to {high[1]:.3f}); the fixes are around longitude {middle[0]:.3f}, "
        f"latitude {middle[1]:.3f}{advice}"
    )


def _matched_before(options: ImportOptions, form: TraceFormat, zone: Any, city: City) -> Matched:
    trips = read_fmm(options.traces_path, form, options.skip, zone, city)
    drives = usable(trips.drives, options.cleaning.min_roads, options.cleaning.min_seconds, trips.counts)
    traces = len(trips.names) + trips.counts["traces that FMM did not match"]
    return Matched(drives, traces, trips.users, trips.counts, np.zeros(BINS, np.int64), None, None)


def packed_lines(city: City) -> tuple[np.ndarray, np.ndarray]:
    """The lines of the roads: points [P, 2] (lon, lat), and offsets [N + 1]."""
    points = np.array([point for road in city.roads for point in road.points])
    return points, np.concatenate([[0], np.cumsum([len(road.points) for road in city.roads])])


# Files ------------------------------------------------------------------------------------------------------------


def _write_trips(
    options: ImportOptions,
    identity: dict[str, Any],
    site: Path,
    city: City,
    network_counts: Counter[str],
    matched: Matched,
) -> None:
    """Write splits, record, report and card beside the network."""
    drives = without_repeats(matched.drives, matched.users)
    matched.counts["trips that repeat another one"] += len(matched.drives) - len(drives)
    if not drives:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in (+matched.counts).most_common(3))
        raise UserError(f"{options.traces_path}: no trip of {matched.traces:,} traces is left ({reasons})")
    splits = split_drives(drives, matched.users, options.split)
    for name, index in splits.items():
        write_split(site / f"{name}.csv", drives, index, matched.users)
    record = _record(options, identity, city, network_counts, matched, drives)
    record["trips"]["splits"] = {name: len(index) for name, index in splits.items()}
    atomic_write_text(site / CARD, lambda file: file.write(dataset_card(options.name, record)))
    picture = draw_report(_report_data(options, record, site, city, drives, matched))
    atomic_write(site / REPORT, lambda file: file.write(picture))
    atomic_write_text(site / RECORD, lambda file: file.write(json.dumps(record, indent=2) + "\n"))
    atomic_write_text(site / READY, lambda file: file.write("{}\n"))


def _record(
    options: ImportOptions,
    identity: dict[str, Any],
    city: City,
    network_counts: Counter[str],
    matched: Matched,
    drives: list[Drive],
) -> dict[str, Any]:
    length_m = np.array([road.length_m for road in city.roads])
    seconds = np.array([drive.time_s[-1] - drive.time_s[0] for drive in drives])
    number = np.array([len(drive.roads) for drive in drives])
    sources = {drive.source for drive in drives}
    days = [str(np.datetime64(int(edge(drive.time_s[0] for drive in drives)), "s"))[:10] for edge in (min, max)]
    left_out = {reason: count for reason, count in (+matched.counts).items() if reason != "traces matched"}
    return {
        "identity": identity,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "sources": {
            "map": {"file": options.map_path.name, "digest": identity["map"][:12]},
            "traces": {"file": options.traces_path.name, "digest": identity["traces"][:12]},
        },
        "options": {"split_by": options.split.by, "network": options.network, "u_turns": options.u_turns},
        "network": {
            "roads": len(city.roads),
            "relations": len(city.pairs),
            "km": round(float(length_m.sum()) / 1000, 3),
            "highway": dict(Counter(road.highway for road in city.roads).most_common()),
            "left_out": dict(network_counts.most_common()),
        },
        "trips": {
            "trips": len(drives),
            "traces": matched.traces,
            "traces_matched": len(sources),
            "share_matched": len(sources) / max(1, matched.traces),
            "users": len({matched.users[source] for source in sources} - {""}),
            "mean_roads": float(number.mean()),
            "max_roads": int(number.max()),
            "mean_km": float(np.mean([length_m[drive.roads].sum() for drive in drives])) / 1000,
            "mean_minutes": float(seconds.mean()) / 60,
            "first": days[0],
            "last": days[1],
        },
        "left_out": dict(sorted(left_out.items(), key=lambda item: -item[1])),
        "noise_m": matched.noise_m,
        "median_distance_m": median_distance_m(matched.distances) if matched.noise_m is not None else None,
        "trips_per_s": matched.trips_per_s,
    }


def _report_data(
    options: ImportOptions, record: dict[str, Any], site: Path, city: City, drives: list[Drive], matched: Matched
) -> ReportData:
    traces = load_traces(site) if matched.noise_m is not None else None
    fixes = {}
    if traces is not None:
        for drive in examples(drives):
            rows = slice(traces.ptr[drive.source], traces.ptr[drive.source + 1])
            fixes[drive.source] = np.array(traces.fixes[rows, 1:])
    trips = record["trips"]
    near = f"; a fix lies {record['median_distance_m']:.0f} m from its road (median)" if traces is not None else ""
    title = (
        f"{options.name}: {trips['traces_matched']:,} of {trips['traces']:,} traces matched "
        f"({trips['share_matched']:.1%}), {trips['trips']:,} trips{near}"
    )
    return ReportData(
        title=title,
        lines=[np.array(road.points) for road in city.roads],
        drives=drives,
        traces=max(1, trips["traces"]),
        matched=trips["traces_matched"],
        distances=matched.distances,
        noise_m=matched.noise_m,
        left_out=record["left_out"],
        fixes=fixes,
    )


def _publish(folder: Path, site: Path) -> None:
    """Move the files to their place, the record last, and remove the work."""
    for name in FILES:
        if (site / name).exists():
            move(site / name, folder / name)
    shutil.rmtree(site, ignore_errors=True)
    if not any(site.parent.iterdir()):
        site.parent.rmdir()
