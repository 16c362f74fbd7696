"""Reading the GraphML files of OSMnx, by networkx."""

import ast
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from utils.city_import.osm import Box
from utils.city_import.streets import Piece, Point, Street, StreetMap, check_longitudes, line_length_m
from utils.city_import.tags import RoadChoice
from utils.errors import UserError


@dataclass(frozen=True)
class Edge:
    """One direction of a street."""

    number: int  # `fid` where the file has it, else its place among the edges: how FMM numbers them
    nodes: tuple[int, int]
    points: tuple[Point, ...]
    ways: tuple[str, ...]
    classes: tuple[str, ...]


def is_graphml(path: Path) -> bool:
    """Whether a file begins as GraphML does.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return b"<graphml" in file.read(2_000)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_graphml(path: Path, choice: RoadChoice, box: Box | None) -> StreetMap:
    """The streets of a graph that `osmnx.save_graphml` wrote, simplified or not.

    Args:
        path: the file.
        choice: which classes are taken (whether a road is closed to cars, such a file does not say).
        box: roads with an end outside are left out.

    Raises:
        UserError: the file cannot be read, is projected, or has no roads.
    """
    graph = _read(path)
    places = {name: _place(path, name, data) for name, data in graph.nodes(data=True)}
    counts: Counter[str] = Counter()
    edges = []
    for number, (u, v, data) in enumerate(graph.edges(data=True)):
        classes = _items(data.get("highway", ""))
        if not any(map(choice.takes_class, classes)):
            counts["ways of other kinds"] += 1
        elif box and not (_is_inside(places[u], box) and _is_inside(places[v], box)):
            counts["ways that the edge of the file or of --bbox cuts"] += 1
        else:
            points = _points(path, data, places[u], places[v])
            nodes = _node_id(u), _node_id(v)
            ways = _items(data.get("osmid", ""))
            edges.append(Edge(int(data.get("fid", number)), nodes, points, ways, classes))
    if not edges:
        raise UserError(f"{path}: no roads that --network {'and --bbox ' * (box is not None)}would take")
    check_longitudes(np.array([point for edge in edges for point in edge.points]), path)
    return StreetMap(_streets(edges), [], counts)


def _read(path: Path) -> nx.MultiDiGraph:
    try:
        graph = nx.read_graphml(path, force_multigraph=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ET.ParseError as error:
        raise UserError(f"{path}, line {error.position[0]}: not XML ({error})") from None
    except (nx.NetworkXError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a GraphML file that networkx reads ({error})") from None
    if not graph.number_of_edges():
        raise UserError(f"{path}: a graph without edges")
    return graph if graph.is_directed() else graph.to_directed()


def _place(path: Path, name: str, data: dict[str, Any]) -> Point:
    try:
        lon, lat = round(float(data["x"]), 7), round(float(data["y"]), 7)
    except (KeyError, ValueError):
        raise UserError(f"{path}: node {name} has no x and y; expected a graph of osmnx.save_graphml") from None
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise UserError(
            f"{path}: node {name} is at ({data['x']}, {data['y']}), expected degrees; save the graph before "
            "osmnx.project_graph"
        )
    return lon, lat


def _is_inside(place: Point, box: Box) -> bool:
    return box[0] <= place[0] <= box[2] and box[1] <= place[1] <= box[3]


def _points(path: Path, data: dict[str, Any], start: Point, end: Point) -> tuple[Point, ...]:
    """The line of an edge: `geometry` as `LINESTRING (lon lat, ...)`, or straight where there is none."""
    text = data.get("geometry")
    if text is None:
        return start, end
    try:
        inner = text[text.index("(") + 1 : text.rindex(")")]
        points = [(round(float(lon), 7), round(float(lat), 7)) for lon, lat in map(str.split, inner.split(","))]
    except ValueError:
        raise UserError(f"{path}: geometry: found {text[:60]!r}, expected LINESTRING (lon lat, lon lat, ...)") from None
    return (start, *points[1:-1], end)


def _node_id(name: str) -> int:
    """Ids of OSM are numbers; other names become negative numbers."""
    try:
        return int(name)
    except ValueError:
        return -1 - int.from_bytes(str(name).encode(), "big")


def _items(value: object) -> tuple[str, ...]:
    """`primary` and `['primary', 'trunk']` as a tuple."""
    text = str(value).strip()
    if text.startswith("["):
        try:
            return tuple(map(str, ast.literal_eval(text)))
        except (ValueError, SyntaxError):
            return ()
    return (text,) if text else ()


def _streets(edges: list[Edge]) -> list[Street]:
    """Edges with their way back, where there is one along the same line."""
    waiting: dict[tuple[Point, ...], list[Street]] = {}
    streets = []
    for edge in edges:
        back = waiting.get(edge.points[::-1])
        if back and back[0].nodes == [edge.nodes[1], edge.nodes[0]]:
            street = back.pop(0)
            street.backward = True
            street.backward_edges.append(edge.number)
            continue
        piece = Piece(edge.ways, edge.classes, line_length_m(list(edge.points)))
        street = Street(list(edge.nodes), list(edge.points), True, False, [piece], [edge.number])
        waiting.setdefault(edge.points, []).append(street)
        streets.append(street)
    return streets
