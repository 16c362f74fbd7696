"""A road network of the data format as OpenStreetMap would have it, to see whether its roads are found again."""

import itertools
from pathlib import Path
from typing import TextIO
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from utils.city_import.network import City, build_city
from utils.city_import.osm import read_osm
from utils.city_import.tags import RoadChoice
from utils.data.highway import parse_highway
from utils.data.synthetic.network import HIGHWAY_TEXTS, build_network
from utils.files.atomic import atomic_write_text

Pair = tuple[str, str]  # lon and lat as text


def write_osm(path: Path, points: NDArray[np.float64], offset: NDArray[np.int64], highway: list[str]) -> None:
    """Write OSM XML: a way for each street, `oneway` where there is no road back along the same line.

    Args:
        path: the file.
        points: [P, 2] (lon, lat), the lines of all roads, packed.
        offset: [N + 1] into the points.
        highway: [N], as in `roadmap.geo`; of a list, its class.
    """
    texts = [(f"{lon:.7f}", f"{lat:.7f}") for lon, lat in points.tolist()]
    lines = [tuple(texts[first:last]) for first, last in itertools.pairwise(offset)]
    nodes = {place: number for number, place in enumerate(dict.fromkeys(texts), 1)}
    there = set(lines)
    atomic_write_text(path, lambda file: _write(file, lines, nodes, there, highway))


def _write(
    file: TextIO, lines: list[tuple[Pair, ...]], nodes: dict[Pair, int], there: set[tuple], highway: list[str]
) -> None:
    file.write('<?xml version="1.0" encoding="UTF-8"?>\n<osm version="0.6">\n')
    file.writelines(f'<node id="{number}" lat="{lat}" lon="{lon}"/>\n' for (lon, lat), number in nodes.items())
    done = set()
    for number, (line, name) in enumerate(zip(lines, highway, strict=True), 1):
        if line[::-1] in done:
            continue
        done.add(line)
        refs = "".join(f'<nd ref="{nodes[place]}"/>' for place in line)
        oneway = "no" if line[::-1] in there else "yes"
        tags = f'<tag k="highway" v={quoteattr(parse_highway(name))}/><tag k="oneway" v="{oneway}"/>'
        file.write(f'<way id="{number}">{refs}{tags}</way>\n')
    file.write("</osm>\n")


def write_synthetic_map(path: Path, roads: int, seed: int) -> Path:
    """Write a synthetic city of about `roads` roads as OSM XML, a function of (`roads`, `seed`) alone; `path`."""
    network = build_network(roads, seed)
    points = np.stack([network.lon, network.lat], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_osm(path, points, network.point_ptr, [HIGHWAY_TEXTS[text] for text in network.highway_text])
    return path


def read_map(path: Path) -> City:
    """The city of an OSM XML or PBF file, as an import reads it by default.

    Raises:
        UserError: the file cannot be read.
    """
    return build_city(read_osm(path, RoadChoice.parse("drive"), None), "dead_ends", path)
