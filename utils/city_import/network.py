"""From streets to directed roads, and which can follow which: `roadmap.geo`, `roadmap.rel`, `roads.csv`."""

import csv
import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from utils.city_import.merging import merge_streets
from utils.city_import.streets import Point, Restriction, Street, StreetMap, line_length_m
from utils.errors import UserError
from utils.files.atomic import atomic_write_text

U_TURNS = ("never", "dead_ends", "always")
ROADS = "roads.csv"

Pairs = NDArray[np.int64]  # [R, 2], roads, and roads that can follow them


@dataclass(frozen=True)
class Road:
    """One direction of a street."""

    nodes: list[int]
    points: list[Point]
    length_m: float
    highway: str  # a class, or a list of classes as text
    ways: list[str]  # OSM ids in the order in which they are driven
    street: int
    edges: list[int]  # of a GraphML
    edge_m: list[float]  # their lengths


@dataclass(frozen=True)
class City:
    """The roads of a city, and the pairs that can follow each other, in ascending order."""

    roads: list[Road]
    pairs: Pairs


def build_city(streets: StreetMap, u_turns: str, path: Path) -> City:
    """Roads, relations, and the largest part in which every road can be reached from every other one.

    `streets.counts` is told what was left out.

    Raises:
        UserError: no road can follow another one.
    """
    counts = streets.counts
    fixed = [restriction.node for restriction in streets.restrictions]
    roads = list(_roads(merge_streets(streets.streets, fixed, counts), counts))
    pairs = _follow(roads, u_turns)
    pairs = _obey(roads, pairs, streets.restrictions, counts)
    kept = _largest_part(len(roads), pairs) if len(pairs) else pairs[:, 0]
    if not len(kept):
        raise UserError(f"{path}: no road can be reached from another one and back: is --network or --bbox too narrow?")
    counts["roads outside the largest connected part"] += len(roads) - len(kept)
    number = np.full(len(roads), -1)
    number[kept] = np.arange(len(kept))
    pairs = number[pairs]
    return City([roads[i] for i in kept], pairs[(pairs >= 0).all(axis=1)])


def _roads(streets: Iterable[Street], counts: Counter[str]) -> list[Road]:
    """Both directions where there are two, in the order of their nodes."""
    roads = []
    for number, street in enumerate(streets):
        length_m = line_length_m(street.points)
        if length_m <= 0:
            counts["streets without length"] += 1
            continue
        highway = _classes(street)
        ways = [way for way, _ in itertools.groupby(way for piece in street.pieces for way in piece.ways)]
        piece_m = [piece.length_m for piece in street.pieces]
        shared = (length_m, highway)
        if street.forward:
            edges = street.forward_edges, piece_m
            roads.append(Road(street.nodes, street.points, *shared, ways, number, *edges))
        if street.backward:
            edges = street.backward_edges[::-1], piece_m[::-1]
            roads.append(Road(street.nodes[::-1], street.points[::-1], *shared, ways[::-1], number, *edges))
    return sorted(roads, key=lambda road: (road.nodes[0], road.nodes[-1], road.points))


def _classes(street: Street) -> str:
    """The class of a street; a list as text, the longest first, where it is made of several."""
    lengths: Counter[str] = Counter()
    for piece in street.pieces:
        for name in piece.classes:
            lengths[name] += piece.length_m
    names = sorted(lengths, key=lambda name: -round(lengths[name]))
    return names[0] if len(names) == 1 else str(names)


def _follow(roads: list[Road], u_turns: str) -> Pairs:
    """Every road with those that begin where it ends, except itself and, by `u_turns`, the way back."""
    leaving: dict[int, list[int]] = {}
    for number, road in enumerate(roads):
        leaving.setdefault(road.nodes[0], []).append(number)
    pairs = []
    for number, road in enumerate(roads):
        here = [then for then in leaving.get(road.nodes[-1], []) if then != number]
        ahead = [then for then in here if roads[then].street != road.street]
        if u_turns == "always" or (u_turns == "dead_ends" and not ahead):
            ahead = here
        pairs += [(number, then) for then in ahead]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _obey(roads: list[Road], pairs: Pairs, restrictions: Iterable[Restriction], counts: Counter[str]) -> Pairs:
    """Take out the pairs that turn restrictions forbid."""
    at_node: dict[int, list[Restriction]] = {}
    for restriction in restrictions:
        at_node.setdefault(restriction.node, []).append(restriction)
    if not at_node:
        return pairs
    leaving = {(road.nodes[0], road.ways[0]) for road in roads}
    allowed = np.ones(len(pairs), dtype=bool)
    for i, (number, then) in enumerate(pairs.tolist()):
        origin, destination = roads[number], roads[then]
        for restriction in at_node.get(origin.nodes[-1], ()):
            # An order to take a road that is not there would only cut the city.
            if any((restriction.node, way) in leaving for way in restriction.destinations) and restriction.forbids(
                origin.ways[-1], destination.ways[0], origin.street == destination.street
            ):
                allowed[i] = False
    counts["turns that restrictions forbid"] += int((~allowed).sum())
    return pairs[allowed]


def _largest_part(number: int, pairs: Pairs) -> NDArray[np.int64]:
    graph = csr_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(number, number))
    _, part = connected_components(graph, directed=True, connection="strong")
    sizes = np.bincount(part)
    if sizes.max() < 2:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(part == sizes.argmax())


# Files ------------------------------------------------------------------------------------------------------------


def write_city(folder: Path, city: City) -> None:
    """Write `roadmap.geo`, `roadmap.rel` and `roads.csv`, each as a whole.

    Raises:
        WriteError: the disk is full, say.
    """
    atomic_write_text(folder / ROADS, lambda file: _write_ids(file, city))
    atomic_write_text(folder / "roadmap.geo", lambda file: _write_geo(file, city))
    atomic_write_text(folder / "roadmap.rel", lambda file: _write_rel(file, city))


def _write_geo(file: TextIO, city: City) -> None:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["geo_id", "type", "coordinates", "length", "highway"])
    for number, road in enumerate(city.roads):
        # A node is one text wherever it stands: that is how adjacency is found.
        points = ", ".join(f"[{lon:.7f}, {lat:.7f}]" for lon, lat in road.points)
        rows.writerow([number, "LineString", f"[{points}]", f"{road.length_m:.3f}", road.highway])


def _write_rel(file: TextIO, city: City) -> None:
    file.write("rel_id,type,origin_id,destination_id\n")
    file.writelines(f"{i},geo,{origin},{then}\n" for i, (origin, then) in enumerate(city.pairs.tolist()))


def _write_ids(file: TextIO, city: City) -> None:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["geo_id", "way_ids", "node_ids", "edges"])
    for number, road in enumerate(city.roads):
        rows.writerow([number, ";".join(road.ways), *(";".join(map(str, ids)) for ids in (road.nodes, road.edges))])
