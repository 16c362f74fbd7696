"""Generating trips for hours: blocks of queries, each kept when it is done, and all in one file at the end."""

import heapq
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from utils.errors import UserError
from utils.files.atomic import atomic_write_text, remove, remove_temporary_files
from utils.files.locks import folder_lock
from utils.generation.generator import TripGenerator
from utils.generation.job import GenerationJob
from utils.generation.paths import Query, Trip
from utils.generation.trip_files import (
    GEOJSON,
    MAP,
    MISSED,
    PUBLIC,
    RECORD,
    SHORT,
    TRIPS,
    TripRow,
    read_rows,
    write_rows,
)
from utils.runtime.distributed import Processes
from utils.runtime.progress import progress
from utils.runtime.signals import take_signals

BLOCK = 256  # queries
PARTS = ".parts"  # folder of the blocks that are done
IDENTITY = "identity.json"

Identity = dict[str, Any]  # what decides which trips are generated: options, and hashes of files
WriteMore = Callable[[Path, Callable[[], Iterator[TripRow]]], None]


def choose_folder(wanted: Path, identity: Identity) -> Path:
    """The folder for the trips: `wanted`, or where it has trips of another kind, `wanted-2`, `wanted-3`, ...

    Trips that are there already are never overwritten.

    Raises:
        UserError: `wanted` is a file.
    """
    if wanted.is_file():
        raise UserError(f"{wanted}: is a file, expected a folder")
    folder, number = wanted, 1
    while (there := _identity_in(folder)) is not None and there != identity:
        logger.warning(f"{folder}: has {_difference(there, identity)}; it stays as it is")
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _identity_in(folder: Path) -> Identity | None:
    """What the trips in a folder depend on; None: there are none."""
    for path in (folder / RECORD, folder / PARTS / IDENTITY):
        try:
            return json.loads(path.read_text(encoding="utf-8"))["identity"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            return {}
    others = (TRIPS, SHORT, MISSED, PUBLIC, GEOJSON, MAP)
    return {} if any((folder / name).exists() for name in others) else None


def _difference(there: Identity, identity: Identity) -> str:
    """How the trips that are there are others."""
    if not there:
        return "files that another program wrote"
    keys = [key for key in identity if there.get(key) != identity[key]] or ["version"]
    return f"trips that differ in {', '.join(keys)}"


@dataclass(frozen=True)
class Summary:
    """What was generated."""

    queries: int
    trips: int
    by_status: dict[str, int]
    expansions: dict[str, float]  # p50, p95 and max over the queries; of several trips, the largest number counts
    seconds: float | None  # that all queries took, with loading the model; None: not all of them in this run

    @property
    def trips_per_s(self) -> float | None:
        return self.trips / self.seconds if self.seconds else None


def generate(
    folder: Path, job: GenerationJob, identity: Identity, processes: Processes, write_more: WriteMore
) -> Summary | None:
    """Generate what is not in `folder` yet, and write its files.

    Args:
        folder: what `choose_folder` returned.
        job: what to generate; its model is loaded when there is something left.
        identity: kept with the trips; the same command resumes, another one does not.
        processes: those that share the blocks.
        write_more: writes what was asked for besides, from the folder and a function that gives all rows.

    Returns:
        What was generated; None in all processes but the main one.

    Raises:
        UserError: another process works in the folder, or it cannot be written.
    """
    names = [TRIPS, SHORT, *([MISSED] if job.only_reached else [])]
    if not processes.is_main:
        processes.barrier()  # until the main process holds the folder
        if not (folder / RECORD).exists():
            _generate_blocks(folder, job, processes)
        processes.barrier()
        return None
    with folder_lock(folder):
        remove_temporary_files(folder)
        is_complete = (folder / RECORD).exists() and all((folder / name).exists() for name in names)
        is_fresh = not any((folder / PARTS).glob("[0-9]*.csv"))
        if not is_complete:
            remove(folder / RECORD)
            _write_json(folder / PARTS / IDENTITY, {"identity": identity})
            remove_temporary_files(folder / PARTS)
        processes.barrier()
        began = time.monotonic()
        if not is_complete:
            _generate_blocks(folder, job, processes)
        processes.barrier()
        if is_complete:
            logger.info(f"{folder}: all trips are there")
            summary = _reread(folder, names, write_more)
        else:
            seconds = time.monotonic() - began if is_fresh else None
            summary = _finish(folder, identity, len(job.queries), seconds, job.only_reached, names, write_more)
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        return summary


def _reread(folder: Path, names: Sequence[str], write_more: WriteMore) -> Summary:
    """Write what was asked for besides from the files of trips."""

    def rows() -> Iterator[TripRow]:
        """In the order of the queries, which they have in each file."""
        return heapq.merge(*(read_rows(folder / name) for name in names), key=lambda row: (row.source_row, row.rank))

    write_more(folder, rows)
    return Summary(**json.loads((folder / RECORD).read_text(encoding="utf-8"))["summary"])


def _finish(
    folder: Path,
    identity: Identity,
    number: int,
    seconds: float | None,
    only_reached: bool,
    names: Sequence[str],
    write_more: WriteMore,
) -> Summary:
    """Write the files of all trips from the blocks."""
    parts = [_part(folder, first) for first in range(0, number, BLOCK)]

    def rows() -> Iterator[TripRow]:
        return itertools.chain.from_iterable(map(read_rows, parts))

    def kind(row: TripRow) -> str:
        if len(row.road) == 1:
            return SHORT
        return MISSED if only_reached and row.status != "reached" else TRIPS

    for name in names:
        write_rows(folder / name, (row for row in rows() if kind(row) == name))
    write_more(folder, rows)
    summary = _summary(rows(), number, seconds)
    record = {
        "identity": identity,
        "summary": vars(summary),
        "trips_per_s": summary.trips_per_s,
    }
    _write_json(folder / RECORD, record)
    return summary


def _generate_blocks(folder: Path, job: GenerationJob, processes: Processes) -> None:
    """Generate this process's blocks that are not there.

    With many slots several blocks are worked on together: what is computed together decides the last digits, so these
    are the same blocks at each start of the same command, and of an unfinished group all are generated again.
    """
    blocks = [(first, job.queries[first : first + BLOCK]) for first in range(0, len(job.queries), BLOCK)]
    share = -(-len(blocks) // processes.world_size)  # of each process
    size = max(min(job.slots // BLOCK, share), 1)
    groups = [dict(blocks[i : i + size]) for i in range(0, len(blocks), size)]
    own = groups[processes.rank :: processes.world_size]
    missing = [group for group in own if not all(_is_done(folder, block, first) for first, block in group.items())]
    if not missing:
        return
    generator = job.make_generator()
    number, left = (sum(len(block) for group in some for block in group.values()) for some in (own, missing))
    if left < number:
        logger.info(f"{folder}: {number - left} of {number} queries are done; the others follow")
    ended = reached = 0
    with progress(None, "generating", number, "queries") as bar:
        bar.update(number - left)
        for group in missing:
            found: dict[int, dict[int, list[TripRow]]] = {first: {} for first in group}
            for first, place, trips in _trips_of(group, generator):
                take_signals()
                query, rows = group[first][place], found[first]
                rows[place] = [TripRow.from_trip(query, rank + 1, trip) for rank, trip in enumerate(trips)]
                if len(rows) == len(group[first]):
                    write_rows(_part(folder, first), itertools.chain.from_iterable(rows[i] for i in sorted(rows)))
                    del found[first]
                reached += trips[0].status == "reached"
                ended += 1
                bar.update()
                bar.set_postfix_str(f"{reached / ended:.1%} reached", refresh=False)


def _trips_of(blocks: dict[int, Sequence[Query]], generator: TripGenerator) -> Iterator[tuple[int, int, list[Trip]]]:
    """Trips of several blocks, worked on together: block, place in it, and trips of each query, as they are found."""
    places = [(first, place) for first, block in blocks.items() for place in range(len(block))]
    for i, trips in generator.trips([blocks[first][place] for first, place in places]):
        yield *places[i], trips


def _part(folder: Path, first: int) -> Path:
    return folder / PARTS / f"{first:09d}.csv"


def _is_done(folder: Path, block: Sequence[Query], first: int) -> bool:
    """Whether a block's trips are there, whole."""
    path = _part(folder, first)
    if not path.exists():
        return False
    try:
        rows = {row.source_row for row in read_rows(path)}
    except (OSError, ValueError, StopIteration):
        rows = set()
    if rows == {query.row for query in block}:
        return True
    logger.warning(f"{path}: damaged; its trips are generated again")
    return False


def _summary(rows: Iterator[TripRow], queries: int, seconds: float | None) -> Summary:
    statuses: Counter[str] = Counter()
    expansions: dict[int, int] = {}
    for row in rows:
        statuses[row.status] += 1
        expansions[row.source_row] = max(row.expansions, expansions.get(row.source_row, 0))
    values = np.array(list(expansions.values()))
    p50, p95 = np.percentile(values, [50, 95])
    return Summary(
        queries=queries,
        trips=sum(statuses.values()),
        by_status=dict(sorted(statuses.items(), key=lambda item: -item[1])),
        expansions={"p50": float(p50), "p95": float(p95), "max": float(values.max())},
        seconds=seconds,
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write_text(path, lambda file: file.write(json.dumps(content, indent=2) + "\n"))


def format_summary(summary: Summary, folder: Path, method: str) -> str:
    """What was generated, in a few lines."""
    speed = f", {summary.trips_per_s:,.1f} trips/s" if summary.trips_per_s else ""
    lines = [f"{folder / TRIPS}: {summary.trips:,} trips of {summary.queries:,} queries ({method}){speed}"]
    for status, number in summary.by_status.items():
        lines.append(f"  {status:11} {number:9,}  {number / summary.trips:6.1%}")
    p = summary.expansions
    lines.append(f"  expansions of a query: median {p['p50']:,.0f}, 95 % at most {p['p95']:,.0f}, max {p['max']:,.0f}")
    return "\n".join(lines)


def check_options(method: str, k: int) -> None:
    """Refuse what makes no sense together.

    Raises:
        UserError: it does not.
    """
    if method == "greedy" and k > 1:
        raise UserError("--method greedy finds one trip a query; for more take --method search, exact or sample")
