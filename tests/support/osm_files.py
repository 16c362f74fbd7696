"""Small maps written by hand, as OpenStreetMap has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

Place = tuple[float, float]  # hundreds of metres east and north of the middle, about
LON, LAT = 10.0, 50.0
EAST, NORTH = 0.0014, 0.0009  # degrees


def write_map(
    path: Path,
    nodes: Mapping[int, Place],
    ways: Sequence[tuple[int, Sequence[int], str]],
    restrictions: Sequence[tuple[str, int, int, int]] = (),
) -> Path:
    """Write OSM XML.

    Args:
        path: the file.
        nodes: id -> place.
        ways: id, nodes, tags such as `highway=primary oneway=yes`.
        restrictions: kind, way, node, way, such as `no_left_turn`, 1, 5, 2; further tags behind the kind.
    """
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<osm version="0.6">']
    for number, (x, y) in nodes.items():
        lines.append(f'<node id="{number}" lat="{LAT + NORTH * y:.7f}" lon="{LON + EAST * x:.7f}"/>')
    for number, refs, tags in ways:
        inner = "".join(f'<nd ref="{ref}"/>' for ref in refs) + _tags(tags)
        lines.append(f'<way id="{number}">{inner}</way>')
    for number, (kind, origin, via, destination) in enumerate(restrictions, 1):
        kind, _, tags = kind.partition(" ")
        members = "".join(
            f'<member type="{what}" ref="{ref}" role="{role}"/>'
            for what, ref, role in (("way", origin, "from"), ("node", via, "via"), ("way", destination, "to"))
        )
        tags = _tags(f"type=restriction restriction={kind} {tags}".strip())
        lines.append(f'<relation id="{number}">{members}{tags}</relation>')
    path.write_text("\n".join([*lines, "</osm>"]))
    return path


def _tags(text: str) -> str:
    pairs = [pair.split("=", 1) for pair in text.split()]
    return "".join(f'<tag k="{key}" v="{value}"/>' for key, value in pairs)
