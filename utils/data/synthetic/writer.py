"""Writes a synthetic city in HOSER's file format: roads, relations between them, and trips for three splits."""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.synthetic.drivers import FIRST_DAY, Trips, drive_trips
from utils.data.synthetic.network import HIGHWAY_TEXTS, HIGHWAYS, CityNetwork, build_network
from utils.data.synthetic.spec import CitySpec
from utils.errors import UserError

ROWS_PER_CHUNK = 20_000  # rows of text held in memory at a time


@dataclass(frozen=True)
class CitySummary:
    """Counts and means of a city that was written."""

    roads: int
    junctions: int
    relations: int
    one_way_share: float  # of the roads
    highway_shares: dict[str, float]  # of the roads, by class, classes present only
    trips: int
    mean_trip_roads: float
    median_trip_roads: float
    max_trip_roads: int
    single_candidate_share: float  # of the steps, those from a road that only one road continues
    mean_trip_km: float
    mean_trip_minutes: float


def build_city(folder: Path, spec: CitySpec) -> CitySummary:
    """Write roadmap.geo, roadmap.rel, train.csv, val.csv and test.csv into `folder`, all of them or nothing.

    `folder` must be absent or empty. It appears by a rename when all is on the disk.
    """
    folder = Path(folder).resolve()
    _check_vacant(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _building_site(folder) as site:
            network = build_network(spec.roads, spec.seed)
            _write(site / "roadmap.geo", "geo_id,type,coordinates,length,highway", _geo_chunks(network))
            _write(site / "roadmap.rel", "rel_id,type,origin_id,destination_id", _rel_chunks(network))
            trips = drive_trips(network, spec.trips, spec.seed)
            for split, index in _split(spec.trips, spec.seed).items():
                header = "mm_id,entity_id,traj_id,rid_list,time_list"
                _write(site / f"{split}.csv", header, _trip_chunks(trips, index))
            _check_vacant(folder)
            _fsync(site)
            site.rename(folder)
            _fsync(folder.parent)
    except OSError as error:
        raise UserError(f"cannot write the city to {folder}: {error}") from error
    return _summary(network, trips)


# The folder ---------------------------------------------------------------------------------------------------


def _check_vacant(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder that does not exist yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not empty; remove it yourself or name another folder")


@contextmanager
def _building_site(folder: Path) -> Iterator[Path]:
    """A locked temporary sibling of `folder`, gone afterwards unless it was renamed.

    Sites that a killed build left behind are removed first; the lock tells them from one in use.
    """
    prefix = f".{folder.name}.building-"
    for abandoned in sorted(folder.parent.iterdir()):
        if abandoned.name.startswith(prefix) and abandoned.is_dir() and (lock := _try_lock(abandoned)) is not None:
            shutil.rmtree(abandoned)
            os.close(lock)
    site = folder.parent / f"{prefix}{os.getpid()}"
    site.mkdir()
    lock = _try_lock(site)
    try:
        yield site
    finally:
        shutil.rmtree(site, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """An open descriptor that holds the lock of `folder`, or None if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _write(path: Path, header: str, chunks: Iterable[str]) -> None:
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.write(header + "\n")
        file.writelines(chunks)
        file.flush()
        os.fsync(file.fileno())


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The text -----------------------------------------------------------------------------------------------------


def _geo_chunks(network: CityNetwork) -> Iterator[str]:
    highway_field = [f'"{text}"' if "," in text else text for text in HIGHWAY_TEXTS]
    for first in range(0, network.roads, ROWS_PER_CHUNK):
        last = min(first + ROWS_PER_CHUNK, network.roads)
        ptr = network.point_ptr[first : last + 1]
        lon, lat = network.lon[ptr[0] : ptr[-1]].tolist(), network.lat[ptr[0] : ptr[-1]].tolist()
        points = ["[%.7f, %.7f]" % point for point in zip(lon, lat, strict=True)]  # noqa: UP031 (twice as fast)
        begin = (ptr - ptr[0]).tolist()
        length_m = network.length_m[first:last].tolist()
        highway = network.highway_text[first:last].tolist()
        yield "".join(
            f'{first + i},LineString,"[{", ".join(points[begin[i] : begin[i + 1]])}]",'
            f"{length_m[i]:.3f},{highway_field[highway[i]]}\n"
            for i in range(last - first)
        )


def _rel_chunks(network: CityNetwork) -> Iterator[str]:
    for first in range(0, len(network.origin), ROWS_PER_CHUNK):
        rows = slice(first, first + ROWS_PER_CHUNK)
        pairs = zip(network.origin[rows].tolist(), network.destination[rows].tolist(), strict=True)
        yield "".join(f"{first + i},geo,{origin},{then}\n" for i, (origin, then) in enumerate(pairs))


def _split(trips: int, seed: int) -> dict[str, np.ndarray]:
    """Trip numbers of each split, 80/10/10 at random, in order of departure."""
    shuffled = np.random.Generator(np.random.PCG64([seed, 4])).permutation(trips)
    tenth = round(trips / 10)
    parts = {"train": shuffled[2 * tenth :], "val": shuffled[:tenth], "test": shuffled[tenth : 2 * tenth]}
    return {name: np.sort(part) for name, part in parts.items()}


def _trip_chunks(trips: Trips, index: np.ndarray) -> Iterator[str]:
    rows_per_chunk = ROWS_PER_CHUNK // 20  # a trip is a long row
    for first in range(0, len(index), rows_per_chunk):
        yield "".join(_trip_line(trips, trip) for trip in index[first : first + rows_per_chunk].tolist())


def _trip_line(trips: Trips, trip: int) -> str:
    part = slice(trips.ptr[trip], trips.ptr[trip + 1])
    roads = ",".join(map(str, trips.road[part].tolist()))
    times = "Z,".join(np.datetime_as_string(FIRST_DAY + trips.entered_s[part]).tolist())
    return f'{trip},{trips.driver[trip]},{trips.number[trip]},"{roads}","{times}Z"\n'


def _summary(network: CityNetwork, trips: Trips) -> CitySummary:
    trip_roads = np.diff(trips.ptr)
    last = trips.ptr[1:] - 1
    step = np.ones(len(trips.road), dtype=bool)
    step[last] = False  # the destination is no step
    candidates = np.bincount(network.origin, minlength=network.roads)[trips.road[step]]
    shares = np.bincount(network.highway, minlength=len(HIGHWAYS)) / network.roads
    return CitySummary(
        roads=network.roads,
        junctions=len(network.x_m),
        relations=len(network.origin),
        one_way_share=float(network.one_way.mean()),
        highway_shares={name: share for name, share in zip(HIGHWAYS, shares.tolist(), strict=True) if share},
        trips=len(trip_roads),
        mean_trip_roads=float(trip_roads.mean()),
        median_trip_roads=float(np.median(trip_roads)),
        max_trip_roads=int(trip_roads.max()),
        single_candidate_share=float((candidates == 1).mean()),
        mean_trip_km=float(network.length_m[trips.road].sum() / len(trip_roads) / 1000),
        mean_trip_minutes=float((trips.entered_s[last] - trips.entered_s[trips.ptr[:-1]]).mean() / 60),
    )
