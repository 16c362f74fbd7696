"""Matching all traces: blocks of trips shared among processes, each kept on the disk when it is done."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from utils.city_import.cleaning import CleaningOptions, average_close, clean_trip
from utils.city_import.drives import BIN_M, BINS, Drive, Part, usable
from utils.city_import.matching import Fixes, Match, Matcher, MatchOptions
from utils.city_import.shapes import RoadShapes
from utils.city_import.times import entries
from utils.city_import.traces import Traces, load_traces
from utils.errors import UserError
from utils.runtime.progress import progress
from utils.runtime.signals import take_signals

BLOCK = 500  # traces of a part; fewer where there are few traces
FEW = 300  # traces: other processes would take longer to start
AT_ONCE = 100  # trips that are matched together: memory
GRAZED = 2.0  # times the noise: less than this of the first or last road is none

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """What a process needs to match any block."""

    points: Floats  # [P, 2] (lon, lat), the lines of the roads, packed
    offset: Ints  # [N + 1]
    pairs: Ints  # [R, 2], roads and roads that can follow them
    traces: Path  # folder that `read_traces` wrote
    cleaning: CleaningOptions
    noise_m: float


class BlockMatcher:
    """Cleans and matches blocks of the traces."""

    def __init__(self, work: Work, traces: Traces):
        self.cleaning, self.traces, self.noise_m = work.cleaning, traces, work.noise_m
        self.shapes = RoadShapes.from_lines(work.points, work.offset)
        self.city_m = np.stack([self.shapes.xy_m.min(axis=0), self.shapes.xy_m.max(axis=0)])
        self.matcher = Matcher(self.shapes, work.pairs, MatchOptions(work.noise_m, work.cleaning.max_speed_kmh / 3.6))

    def part(self, first: int) -> Part:
        """The outcome of the block of trips from `first` on."""
        counts: Counter[str] = Counter()
        distances = np.zeros(BINS, dtype=np.int64)
        drives = []
        for trips in _runs(first, min(first + block_size(len(self.traces)), len(self.traces)), AT_ONCE):
            fixes, source = self._clean(trips, counts)
            found = self.matcher.match(average_close(fixes, self.noise_m))
            counts["fixes far from every road"] += found.far
            counts["fixes that no way leads to"] += found.odd
            counts["trips cut where no way leads on"] += found.breaks
            for match in found.matches:
                bins = np.minimum(match.distance_m / BIN_M, BINS - 1).astype(np.int64)
                distances += np.bincount(bins, minlength=BINS)
                drives.append(self._drive(match, source))
        kept = usable(drives, self.cleaning.min_roads, self.cleaning.min_seconds, counts)
        counts["traces matched"] += len({drive.source for drive in kept})
        return Part(kept, +counts, distances)

    def _drive(self, match: Match, source: list[int]) -> Drive:
        last_m = float(self.shapes.length_m[match.roads[-1]])
        return Drive(source[match.trip], *entries(match, GRAZED * self.noise_m, last_m))

    def _clean(self, trips: Sequence[int], counts: Counter[str]) -> tuple[Fixes, list[int]]:
        """The fixes of some trips, and the number of the trip that each part of them is from."""
        times, places, source = [], [], []
        for trip in trips:
            rows = np.array(self.traces.fixes[self.traces.ptr[trip] : self.traces.ptr[trip + 1]])
            parts = clean_trip(rows[:, 0], self.shapes.to_plane(rows[:, 1:]), self.city_m, self.cleaning, counts)
            counts["traces without two good fixes"] += not parts
            for time_s, xy_m in parts:
                times.append(time_s)
                places.append(xy_m)
                source.append(trip)
        ptr = np.concatenate([[0], np.cumsum([len(time_s) for time_s in times])]).astype(np.int64)
        return Fixes(ptr, np.concatenate([np.empty(0), *times]), np.concatenate([np.empty((0, 2)), *places])), source


def _runs(first: int, last: int, size: int) -> Iterator[range]:
    for begin in range(first, last, size):
        yield range(begin, min(begin + size, last))


def estimate_noise(work: Work, traces: Traces) -> float:
    """The standard deviation of the fixes in metres, from how far those of some trips are from the matched roads.

    A normal error has 0.6745 times its standard deviation as the median of its size (Newson and Krumm, section 5).
    """
    trips = np.unique(np.linspace(0, len(traces) - 1, 200).astype(np.int64)).tolist()
    noise_m = 20.0
    for _ in range(2):
        matcher = BlockMatcher(dataclasses.replace(work, noise_m=noise_m), traces)
        fixes, _ = matcher._clean(trips, Counter())
        matches = matcher.matcher.match(fixes).matches
        distances = np.concatenate([np.empty(0), *(match.distance_m for match in matches)])
        if not len(distances):
            break
        noise_m = float(np.clip(np.median(distances) / 0.6745, 4.0, 50.0))
    return round(noise_m, 1)


# Processes --------------------------------------------------------------------------------------------------------

_matcher: BlockMatcher | None = None  # of a worker


def match_blocks(work: Work, folder: Path, workers: int) -> float | None:
    """Write the parts that are not in `folder` yet.

    Returns:
        Trips per second of this run; None if there was nothing to do.
    """
    traces = load_traces(work.traces)
    block = block_size(len(traces))
    firsts = range(0, len(traces), block)
    missing = [first for first in firsts if not _is_done(part_path(folder, first))]
    if not missing:
        return None
    number = sum(min(block, len(traces) - first) for first in missing)
    if len(missing) < len(firsts):
        logger.info(f"{len(traces) - number:,} of {len(traces):,} traces are matched already; the others follow")
    began = time.monotonic()
    workers = 1 if number < FEW else min(workers, len(missing))
    logger.info(f"matching {number:,} traces with {workers} process{'es' * (workers > 1)}")
    with progress(None, "matching", len(traces), "trips") as bar:
        bar.update(len(traces) - number)
        run = _in_processes if workers > 1 else _here
        for first in run(work, traces, folder, missing, workers):
            bar.update(min(block, len(traces) - first))
            take_signals()
    return number / (time.monotonic() - began)


def block_size(traces: int) -> int:
    """How many of so many traces are in a part."""
    return min(max(traces // 40, 20), BLOCK)


def part_path(folder: Path, first: int) -> Path:
    """The file of the block that begins with trip `first`."""
    return folder / f"{first:09d}.npz"


def _is_done(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        Part.read(path)
    except (OSError, ValueError, KeyError, BadZipFile):
        logger.warning(f"{path}: damaged; its traces are matched again")
        return False
    return True


def _here(work: Work, traces: Traces, folder: Path, missing: Sequence[int], _: int) -> Iterator[int]:
    matcher = BlockMatcher(work, traces)
    for first in missing:
        matcher.part(first).write(part_path(folder, first))
        yield first


def _in_processes(work: Work, _: Traces, folder: Path, missing: Sequence[int], workers: int) -> Iterator[int]:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # of the processes that start now: one thread each
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (work,))
    try:
        waiting = {pool.submit(_match_block, folder, first) for first in missing}
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            take_signals()
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process that matches was killed, by lack of memory perhaps: run the same command with --workers 1; "
            "what is matched is kept"
        ) from None
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # what they have finished is on the disk
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(work: Work) -> None:
    global _matcher
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()
    _matcher = BlockMatcher(work, load_traces(work.traces))


def _match_block(folder: Path, first: int) -> int:
    _matcher.part(first).write(part_path(folder, first))
    return first
