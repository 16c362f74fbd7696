"""Reading OpenStreetMap's XML and PBF, by osmium."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import osmium

from utils.city_import.streets import Piece, Point, Restriction, Street, StreetMap, check_longitudes, line_length_m
from utils.city_import.tags import RoadChoice, directions, restriction_kind
from utils.errors import UserError
from utils.runtime.progress import progress

Box = tuple[float, float, float, float]  # west, south, east, north in degrees


@dataclass(frozen=True)
class Way:
    """A way of the map that is a road."""

    id: int
    nodes: list[int]
    highway: str
    layer: str
    forward: bool
    backward: bool


def read_osm(path: Path, choice: RoadChoice, box: Box | None) -> StreetMap:
    """The streets of an OSM XML or PBF file, cut at junctions and where ways end.

    Args:
        path: the file; osmium knows its format by the ending (.osm, .osm.gz, .osm.bz2, .pbf).
        choice: which ways are taken.
        box: what is outside is left out.

    Raises:
        UserError: the file cannot be read, or has no roads.
    """
    counts: Counter[str] = Counter()
    try:
        ways, restrictions = _read_ways(path, choice, counts)
        if not ways:
            raise UserError(f"{path}: no ways that --network takes; is it an extract with the tag highway?")
        places = _read_places(path, {node for way in ways for node in way.nodes}, box)
    except RuntimeError as error:
        raise UserError(f"{path}: not readable as OSM XML or PBF ({error})") from None
    same_as = _merge_doubles(ways, places, counts)
    restrictions = [replace(item, node=same_as.get(item.node, item.node)) for item in restrictions]
    runs = [(way, run) for way in ways for run in _runs(way.nodes, places, counts)]
    if not runs:
        raise UserError(f"{path}: none of its {len(ways):,} roads has two nodes{' inside --bbox' * (box is not None)}")
    check_longitudes(np.array([places[node] for _, run in runs for node in run]), path)
    return StreetMap(_cut(runs, places), restrictions, counts)


def _objects(path: Path, kinds: osmium.osm.osm_entity_bits, *filters: object) -> Iterator[object]:
    # An ending that osmium does not know stands for XML.
    is_known = path.name.endswith((".osm", ".pbf", ".gz", ".bz2", ".osc", ".o5m", ".opl"))
    source = osmium.io.File(str(path), "" if is_known else "osm")
    processor = osmium.FileProcessor(source, kinds)
    for item in filters:
        processor = processor.with_filter(item)
    return iter(progress(processor, f"reading {path.name}", None, "objects"))


def _read_ways(path: Path, choice: RoadChoice, counts: Counter[str]) -> tuple[list[Way], list[Restriction]]:
    ways: dict[int, Way] = {}
    restrictions = []
    keys = osmium.filter.KeyFilter("highway", "restriction", "restriction:motorcar", "restriction:motor_vehicle")
    for item in _objects(path, osmium.osm.WAY | osmium.osm.RELATION, keys):
        if item.is_relation():
            restrictions += _restrictions(item, counts)
            continue
        tags = dict(item.tags)
        if not choice.takes(tags):
            counts["ways of other kinds"] += "highway" in tags
        elif item.id in ways:
            counts["ways that the file repeats"] += 1
        else:
            nodes = [node.ref for node in item.nodes]
            ways[item.id] = Way(item.id, nodes, tags["highway"], tags.get("layer", "0"), *directions(tags))
    return list(ways.values()), restrictions


def _restrictions(relation: osmium.osm.Relation, counts: Counter[str]) -> Iterable[Restriction]:
    kind = restriction_kind(relation.tags.get)
    if not kind:
        return
    members = [(member.role, member.type, member.ref) for member in relation.members]
    by_role = {
        role: [str(ref) for name, kind, ref in members if (name, kind) == (role, "w")] for role in ("from", "to")
    }
    nodes = [ref for role, kind, ref in members if (role, kind) == ("via", "n")]
    if len(nodes) != 1 or not all(by_role.values()):
        # Relations are pairs of roads: what holds for a chain of three has no place in them.
        counts["turn restrictions over whole ways, or incomplete"] += 1
        return
    yield Restriction(kind, frozenset(by_role["from"]), nodes[0], frozenset(by_role["to"]))


def _read_places(path: Path, wanted: set[int], box: Box | None) -> dict[int, Point]:
    """Places of the wanted nodes that the file has, inside the box."""
    filters = [osmium.filter.IdFilter(wanted)] if min(wanted, default=0) >= 0 else []  # JOSM counts new nodes below 0
    west, south, east, north = box or (-180.0, -90.0, 180.0, 90.0)
    places = {}
    for node in _objects(path, osmium.osm.NODE, *filters):
        if node.id in wanted and node.location.valid():
            lon, lat = node.location.lon, node.location.lat
            if west <= lon <= east and south <= lat <= north:
                places[node.id] = (lon, lat)
    return places


def _merge_doubles(ways: list[Way], places: dict[int, Point], counts: Counter[str]) -> dict[int, int]:
    """Make one node of those at one place, unless one of them is on a bridge over the other; which became which."""
    at_place: dict[Point, list[int]] = {}
    for node, place in places.items():
        at_place.setdefault(place, []).append(node)
    doubles = {node for nodes in at_place.values() if len(nodes) > 1 for node in nodes}
    if not doubles:
        return {}
    layers: dict[int, set[str]] = {}
    for way in ways:
        for node in doubles.intersection(way.nodes):
            layers.setdefault(node, set()).add(way.layer)
    same_as: dict[int, int] = {}
    for nodes in at_place.values():
        for i, node in enumerate(nodes if len(nodes) > 1 else ()):
            other = next((first for first in nodes[:i] if layers[first] & layers[node]), None)
            if other is not None:
                same_as[node] = same_as.get(other, other)
    for way in ways:
        way.nodes[:] = [same_as.get(node, node) for node in way.nodes]
    counts["nodes at the place of another one, merged"] += len(same_as)
    return same_as


def _runs(nodes: list[int], places: dict[int, Point], counts: Counter[str]) -> Iterator[list[int]]:
    """The stretches of a way whose nodes are known, without a node twice in a row, of two nodes or more."""
    known = [list(run) for is_known, run in itertools.groupby(nodes, places.__contains__) if is_known]
    runs = [[node for node, _ in itertools.groupby(run)] for run in known]
    runs = [run for run in runs if len(run) > 1]
    counts["ways without two nodes in the file"] += not runs
    counts["ways that the edge of the file or of --bbox cuts"] += bool(runs) and not all(
        map(places.__contains__, nodes)
    )
    yield from runs


def _cut(runs: list[tuple[Way, list[int]]], places: dict[int, Point]) -> list[Street]:
    """Cut the stretches at nodes that they share with others, or pass twice."""
    uses = Counter(node for _, run in runs for node in run)
    streets = []
    for way, run in runs:
        cuts = [0, *(i for i in range(1, len(run) - 1) if uses[run[i]] > 1), len(run) - 1]
        for first, last in itertools.pairwise(cuts):
            nodes = run[first : last + 1]
            points = [places[node] for node in nodes]
            piece = Piece((str(way.id),), (way.highway,), line_length_m(points))
            streets.append(Street(nodes, points, way.forward, way.backward, [piece]))
    return streets
