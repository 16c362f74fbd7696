"""The static part of a city: roadmap.geo and roadmap.rel -> arrays."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.data.csv_reader import distinct_sorted, parse_integers, read_chunks, without_garbage_collection
from utils.data.geometry import distances_km, heading, polyline_centroids
from utils.data.highway import class_ids, parse_highway
from utils.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NUMBERS_AS_TEXT = json.JSONDecoder(parse_float=str, parse_int=str)


@dataclass(frozen=True)
class RoadNetwork:
    """Roads, what is reachable from them, and their adjacency. N roads, R relations, E adjacent pairs."""

    center: Floats  # [N, 2], (lon, lat) in degrees, length-weighted centroid of the polyline
    end: Floats  # [N, 2], (lon, lat) of the last point
    bounds: Floats  # [2, 2], least and greatest (lon, lat) of all points
    road_attr_len: NDArray[np.float32]  # [N], standardised log1p(length_m)
    road_attr_type: Ints  # [N], highway class id
    road_attr_lon: NDArray[np.float32]  # [N], standardised
    road_attr_lat: NDArray[np.float32]  # [N], standardised
    highway_classes: tuple[str, ...]  # name of each class id
    reach_ptr: Ints  # [N + 1], candidates of road i are reach_road[reach_ptr[i] : reach_ptr[i + 1]]
    reach_road: Ints  # [R], in the order of roadmap.rel
    reach_heading: Floats  # [R], heading between the roads' end points (see `candidate_heading`)
    road_edge_index: Ints  # [2, E], adjacent roads, row-major
    intersection_attr: NDArray[np.float32]  # [E, 2], heading difference / pi, reachability
    line: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # [N], of roadmap.geo; empty: of no file

    @property
    def num_roads(self) -> int:
        return len(self.center)


def read_road_network(folder: Path) -> RoadNetwork:
    """Read `roadmap.geo` and `roadmap.rel` of a data set.

    Raises:
        UserError: a malformed row, by file and line.
    """
    with without_garbage_collection():
        roads = _read_geo(folder / "roadmap.geo")
        num_roads = len(roads.length_m)
        origin, reach_road = _read_rel(folder / "roadmap.rel", num_roads)
    reach_ptr = np.concatenate([[0], np.cumsum(np.bincount(origin, minlength=num_roads))])
    center = polyline_centroids(roads.points, roads.offset)
    start, end = roads.points[roads.offset[:-1]], roads.points[roads.offset[1:] - 1]
    type_id, classes = class_ids(roads.highway)
    edges = _adjacent_pairs(roads.start_node, roads.end_node)
    # float32 before the statistics, as in the published code: its rounding is part of the definition.
    center32 = center.astype(np.float32)
    return RoadNetwork(
        center=center,
        end=end,
        bounds=np.stack([roads.points.min(axis=0), roads.points.max(axis=0)]),
        road_attr_len=_standardise(np.log1p(roads.length_m.astype(np.float32))),
        road_attr_type=type_id,
        road_attr_lon=_standardise(center32[:, 0]),
        road_attr_lat=_standardise(center32[:, 1]),
        highway_classes=classes,
        reach_ptr=reach_ptr,
        reach_road=reach_road,
        reach_heading=candidate_heading(end[origin], end[reach_road]),
        road_edge_index=edges,
        intersection_attr=_intersection_attr(start, end, edges, origin, reach_road),
        line=roads.line,
    )


def read_polylines(folder: Path) -> tuple[Floats, Ints]:
    """The polylines of all roads, for pictures: points [P, 2] (lon, lat), and offsets [N + 1].

    Raises:
        UserError: as `read_road_network`.
    """
    with without_garbage_collection():
        roads = _read_geo(folder / "roadmap.geo")
    return roads.points, roads.offset


def read_lengths(folder: Path) -> Floats:
    """The length of each road in metres, [N].

    Raises:
        UserError: as `read_road_network`.
    """
    with without_garbage_collection():
        return _read_geo(folder / "roadmap.geo").length_m


# A road this many times as far from the middle of the city as the last of the others is far.
FAR_RATIO = 4.0
FAR_SHARE = 0.05  # at most of the roads: more of them are another part of the city


def describe_far_roads(network: RoadNetwork) -> str:
    """`line 302 (road 300 at [0, 0], 13,000 km from the middle of the city; all others within 1.5 km)`; or empty.

    A mistake in one road's coordinates stretches what is made of all: standardised coordinates, a teacher's grid.
    """
    num_roads = network.num_roads
    if num_roads < 10 or not len(network.line):
        return ""
    middle = np.quantile(network.center, 0.5, axis=0)  # np.median would import numpy.ma, for its NaN only
    distance_km = distances_km(network.center, middle)
    order = np.argsort(distance_km)
    first = num_roads - max(1, int(FAR_SHARE * num_roads))  # of those that may be far
    ascending = distance_km[order]
    gaps = ascending[first:] > FAR_RATIO * np.maximum(ascending[first - 1 : -1], 1e-3)
    if not gaps.any():
        return ""
    first += int(gaps.argmax())
    far = order[first:]
    road = int(far[np.argmin(network.line[far])])
    place = ", ".join(f"{degrees:.6g}" for degrees in network.center[road])
    others = f" and {len(far) - 1} more," if len(far) > 1 else ","
    return (
        f"line {network.line[road]} (road {road} at [{place}]{others} {distance_km[road]:,.1f} km from the middle of "
        f"the city; all others within {ascending[first - 1]:,.1f} km)"
    )


def candidate_heading(start: Floats, end: Floats) -> Floats:
    """Heading from points `start` to points `end` ([n, 2], lon and lat) as `metric_angle` uses it.

    The published code passes (lon, lat) here where its formula expects (lat, lon). Weights trained with it
    depend on that, so it is kept. (The headings of roads in `intersection_attr` are the right way round.)
    """
    return heading(start[:, 0], start[:, 1], end[:, 0], end[:, 1])


def _standardise(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit population deviation; all zeros where the values do not differ."""
    deviation = np.std(values)
    centred = values - np.mean(values)
    return centred / deviation if deviation > 0 else np.zeros_like(centred)


@dataclass(frozen=True)
class _Roads:
    """The columns of roadmap.geo."""

    length_m: Floats  # [N]
    highway: list[str]  # [N], as written in the file
    points: Floats  # [P, 2], lon and lat
    offset: Ints  # [N + 1]
    start_node: Ints  # [N], ids of equal coordinate texts
    end_node: Ints  # [N]
    line: Ints  # [N], of the file


def _read_geo(path: Path) -> _Roads:
    length, highway, pieces, counts, start, end, lines = [], [], [], [], [], [], []
    node_ids: dict[tuple[str, str], int] = {}
    for chunk in read_chunks(path, ("geo_id", "coordinates", "length", "highway")):
        points: list[tuple[str, str]] = []
        lines += chunk.lines
        for geo_id, text, metres, road_class, line in zip(*chunk.columns, chunk.lines, strict=True):
            where = f"{path}, line {line}{chunk.note(line)}"
            if geo_id.strip() != str(len(length)):
                raise UserError(f"{where}: geo_id: found {geo_id!r}, expected {len(length)} (0, 1, 2, ... in order)")
            polyline = _parse_polyline(text, where)
            points += polyline
            counts.append(len(polyline))
            start.append(node_ids.setdefault(polyline[0], len(node_ids)))
            end.append(node_ids.setdefault(polyline[-1], len(node_ids)))
            length.append(_parse_length(metres, where))
            highway.append(road_class)
            if not parse_highway(road_class):
                raise UserError(
                    f"{where}: highway: found {_shorten(road_class)}, expected a class, a code or a list of classes"
                )
        pieces.append(np.array(points, dtype=np.float64).reshape(-1, 2))
    if not length:
        raise UserError(f"{path}: no roads")
    return _Roads(
        length_m=np.array(length),
        highway=highway,
        points=np.concatenate(pieces),
        offset=np.concatenate([[0], np.cumsum(counts)]),
        start_node=np.array(start),
        end_node=np.array(end),
        line=np.array(lines),
    )


def _parse_polyline(text: str, where: str) -> list[tuple[str, str]]:
    """`[[lon, lat], ...]` -> the numbers as they are written: equal text means the same point."""
    try:
        points = _NUMBERS_AS_TEXT.decode(text)
        # Numbers are texts here: quoted ones, and "12" where [1, 2] is meant, must not pass for them.
        if '"' in text or not all(isinstance(part, list) for part in (points, *points)):
            raise ValueError
        pairs = [(lon, lat) for lon, lat in points]
        for lon, lat in pairs:
            # NaN, Infinity and true are no texts.
            if not (isinstance(lon, str) and -180 <= float(lon) <= 180):
                raise ValueError
            if not (isinstance(lat, str) and -90 <= float(lat) <= 90):
                raise ValueError
    except (ValueError, TypeError, RecursionError):
        pairs = []
    if len(pairs) < 2:
        raise UserError(
            f"{where}: coordinates: found {_shorten(text)}, expected JSON [[lon, lat], ...] in degrees, "
            "two points or more"
        )
    return pairs


def _parse_length(text: str, where: str) -> float:
    try:
        length_m = float(text)
    except ValueError:
        length_m = -1.0
    if not 0 <= length_m < 1e8:
        raise UserError(f"{where}: length: found {_shorten(text)}, expected metres, at least 0")
    return length_m


def _shorten(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(text[:57] + "...")


def _read_rel(path: Path, num_roads: int) -> tuple[Ints, Ints]:
    """Origins (ascending) and destinations [R]; within an origin in the order of the file."""
    pieces = []
    for chunk in read_chunks(path, ("origin_id", "destination_id"), rows=200_000):
        columns = [parse_integers(column) for column in chunk.columns]
        if any(column is None or len(column) != len(chunk.lines) for column in columns):
            row = next(i for i, pair in enumerate(zip(*chunk.columns, strict=True)) if not _are_ids(pair))
            found = ", ".join(column[row] for column in chunk.columns)
            raise UserError(f"{path}, line {chunk.lines[row]}: found {found!r}, expected two road ids")
        pairs = np.stack(columns)
        outside = ((pairs < 0) | (pairs >= num_roads)).any(axis=0)
        if outside.any():
            row = int(outside.argmax())
            raise UserError(
                f"{path}, line {chunk.lines[row]}: found roads {pairs[0, row]} and {pairs[1, row]}, "
                f"expected ids from 0 to {num_roads - 1} (roadmap.geo has {num_roads} roads)"
            )
        pieces.append(pairs)
    if not pieces:
        raise UserError(f"{path}: no relations, so that no trip is possible; expected a row for each pair of roads")
    origin, destination = np.concatenate(pieces, axis=1)
    order = np.argsort(origin, kind="stable")
    return origin[order], destination[order]


def _are_ids(pair: tuple[str, ...]) -> bool:
    values = parse_integers(pair)
    return values is not None and len(values) == len(pair)


def _adjacent_pairs(start_node: Ints, end_node: Ints) -> Ints:
    """Pairs (i, j), i != j, of roads that share an end point; [2, E], row-major, each pair once."""
    num_roads = len(start_node)
    node = np.concatenate([start_node, end_node])
    road = np.tile(np.arange(num_roads), 2)
    order = np.argsort(node, kind="stable")
    node, road = node[order], road[order]
    first = np.searchsorted(node, node)
    size = np.searchsorted(node, node, side="right") - first
    # Each place among the nodes' roads is paired with every place of the same node.
    left = np.repeat(np.arange(len(node)), size)
    right = first[left] + np.arange(len(left)) - np.repeat(np.cumsum(size) - size, size)
    i, j = road[left], road[right]
    key = distinct_sorted((i * num_roads + j)[i != j])
    return np.stack([key // num_roads, key % num_roads])


def _intersection_attr(start: Floats, end: Floats, edges: Ints, origin: Ints, destination: Ints) -> NDArray[np.float32]:
    """Attributes [E, 2] of adjacent pairs: heading difference / pi in [0, 1]; 1 where j is reachable."""
    direction = heading(start[:, 1], start[:, 0], end[:, 1], end[:, 0])
    difference = np.abs(direction[edges[0]] - direction[edges[1]])
    difference = np.where(difference > np.pi, 2 * np.pi - difference, difference) / np.pi
    num_roads = len(start)
    relation, pair = np.sort(origin * num_roads + destination), edges[0] * num_roads + edges[1]
    place = np.searchsorted(relation, pair).clip(max=len(relation) - 1)
    reachable = relation[place] == pair
    return np.stack([difference, reachable], axis=1).astype(np.float32)
