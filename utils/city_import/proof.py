"""How many roads of known trips the matcher finds again, from fixes with noise and gaps."""

import csv
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from utils.city_import.blocks import BlockMatcher, Work, block_size, estimate_noise
from utils.city_import.cleaning import CleaningOptions
from utils.city_import.drives import Drive
from utils.city_import.network import City
from utils.city_import.run import packed_lines
from utils.city_import.simulation import GpsOptions, SimulatedFixes, draw_fixes
from utils.city_import.traces import Traces
from utils.data.trips import Trips
from utils.files.atomic import atomic_write_text


@dataclass(frozen=True)
class Score:
    """One row of the table."""

    gps: GpsOptions
    recall: float  # of the roads of the trips
    f1: float  # of recall and precision
    exact: float  # share of trips whose roads are all found and no others
    time_error_s: tuple[float, float]  # of entering a road: median, mean
    noise_m: float  # as estimated
    traces_per_s: float  # of one process, with the estimate


def measure(city: City, trips: Trips, gps: GpsOptions) -> Score:
    """Draw fixes from trips, match them as an import does, and compare."""
    points, offset = packed_lines(city)
    traces = _traces(draw_fixes(trips, points, offset, gps), len(trips))
    began = time.perf_counter()
    work = Work(points, offset, city.pairs, Path(), CleaningOptions(min_roads=2, min_seconds=0), 0.0)
    noise_m = estimate_noise(work, traces)
    matcher = BlockMatcher(dataclasses.replace(work, noise_m=noise_m), traces)
    firsts = range(0, len(traces), block_size(len(traces)))
    drives = [drive for first in firsts for drive in matcher.part(first).drives]
    seconds = time.perf_counter() - began
    return Score(gps, *compare(drives, trips), noise_m, len(trips) / seconds)


def compare(drives: Sequence[Drive], trips: Trips) -> tuple[float, float, float, tuple[float, float]]:
    """Recall, F1, share of exact trips, and the error of the entry times, of drives numbered as the trips are."""
    found: dict[int, list[Drive]] = {}
    for drive in drives:
        found.setdefault(drive.source, []).append(drive)
    both = only_true = only_found = exact = 0
    errors = []
    for number in range(len(trips)):
        part = slice(trips.offset[number], trips.offset[number + 1])
        entered = dict(zip(trips.road_id[part].tolist(), trips.time_s[part].tolist(), strict=True))
        got = [(road, s) for drive in found.get(number, ()) for road, s in _entries(drive)]
        roads = {road for road, _ in got}
        both += len(roads & entered.keys())
        only_true += len(entered.keys() - roads)
        only_found += len(roads - entered.keys())
        exact += [road for road, _ in got] == list(entered)
        # A trip begins somewhere on its first road.
        errors += [abs(s - entered[road]) for road, s in got[1:] if road in entered]
    error = (float(np.median(errors)), float(np.mean(errors))) if errors else (np.nan, np.nan)
    return both / (both + only_true), 2 * both / (2 * both + only_true + only_found), exact / len(trips), error


def _entries(drive: Drive) -> list[tuple[int, int]]:
    return list(zip(drive.roads.tolist(), drive.time_s.tolist(), strict=True))


def _traces(fixes: SimulatedFixes, number: int) -> Traces:
    ptr = np.searchsorted(fixes.trip, np.arange(number + 1))
    rows = np.column_stack([fixes.time_s, np.round(fixes.lon_lat, 6)])
    return Traces([f"T{i}" for i in range(number)], [""] * number, ptr, rows, {})


def table(scores: Sequence[Score]) -> str:
    """Scores as a table in Markdown."""
    lines = [
        "| noise | a fix each | missing | roads found again | F1 of roads | exact trips | "
        "entry time, median / mean error | noise, estimated | traces/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for score in scores:
        gps, (median, mean) = score.gps, score.time_error_s
        lines.append(
            f"| {gps.noise_m:g} m | {gps.interval_s} s | {gps.gap_share:.0%} | {score.recall:.3f} | {score.f1:.3f} | "
            f"{score.exact:.3f} | {median:.1f} / {mean:.1f} s | {score.noise_m:g} m | {score.traces_per_s:,.0f} |"
        )
    return "\n".join(lines)


def write_traces(path: Path, city: City, trips: Trips, gps: GpsOptions) -> None:
    """Write the fixes of trips as a CSV file that an import reads."""
    fixes = draw_fixes(trips, *packed_lines(city), gps)
    times = fixes.time_s.astype("M8[s]").astype(str)

    def write(file: TextIO) -> None:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["trip_id", "time", "longitude", "latitude"])
        for trip, moment, (lon, lat) in zip(fixes.trip.tolist(), times.tolist(), fixes.lon_lat.tolist(), strict=True):
            rows.writerow([f"T{trip}", f"{moment}Z", f"{lon:.6f}", f"{lat:.6f}"])

    atomic_write_text(path, write)
