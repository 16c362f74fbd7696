"""Streets of a synthetic city as arrays: an irregular lattice with a hierarchy of roads, a river and parks.

A street is a link between two junctions; a road is one direction of it. Plane coordinates are metres east and
north of the city's centre.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from utils.errors import UserError

EARTH_RADIUS_M = 6_371_008.8
CENTRE_LON_LAT = (12.5, 55.7)
SPACING_M = 115.0

MOTORWAY, TRUNK, PRIMARY, SECONDARY, TERTIARY, RESIDENTIAL, LIVING_STREET, UNCLASSIFIED = range(8)
HIGHWAYS = (
    "motorway",
    "trunk",
    "primary",
    "secondary",
    "tertiary",
    "residential",
    "living_street",
    "unclassified",
)
# Text of the column `highway`, index = variant * 8 + class. Variants 1 to 3 are the lists that OSMnx writes
# where it merges ways; in each of them the first entry that is not `unclassified` is the class itself.
HIGHWAY_TEXTS = (
    *HIGHWAYS,
    *(f"['{name}', 'unclassified']" for name in HIGHWAYS),
    *(f"['unclassified', '{name}']" for name in HIGHWAYS),
    *(f"['{name}', '{following}']" for name, following in zip(HIGHWAYS, HIGHWAYS[1:] + HIGHWAYS[:1], strict=True)),
)
LIST_SHARE = 0.01
ONE_WAY_SHARE = np.array([0.0, 0.0, 0.0, 0.07, 0.14, 0.26, 0.30, 0.15])  # of the streets of each class
DOWNGRADE_SHARE = 0.15  # of the stretches of a secondary or tertiary that are one class lower
MISSING_SHARE = 0.08  # of the minor streets
OUTLINE_LOBES = ((1, 0.05), (2, 0.12), (3, 0.07), (5, 0.04))  # (waves round the rim, their height)
STRETCH = 5  # blocks over which a street keeps its class and its one-way direction
SIZE_TOLERANCE = 0.02
ROADS_PER_JUNCTION = 2.9  # measured; only sizes the lattice, the cut below meets the wanted number


@dataclass(frozen=True)
class Streets:
    """Undirected links of the lattice, S streets over J junctions, most central street first."""

    tail: np.ndarray  # int64 [S] junction
    head: np.ndarray  # int64 [S] junction
    highway: np.ndarray  # int8 [S] index of HIGHWAYS
    one_way: np.ndarray  # bool [S] tail -> head only
    x_m: np.ndarray  # float64 [J]
    y_m: np.ndarray  # float64 [J]

    def take(self, index: np.ndarray | slice) -> "Streets":
        """The streets at `index`, over the same junctions."""
        parts = (part[index] for part in (self.tail, self.head, self.highway, self.one_way))
        return Streets(*parts, self.x_m, self.y_m)


@dataclass(frozen=True)
class CityNetwork:
    """Directed roads 0..N-1 in order of their start junction, and their R relations in order of their origin."""

    start: np.ndarray  # int64 [N] junction
    end: np.ndarray  # int64 [N] junction
    highway: np.ndarray  # int64 [N] index of HIGHWAYS
    highway_text: np.ndarray  # int64 [N] index of HIGHWAY_TEXTS
    length_m: np.ndarray  # float64 [N] along the polyline
    one_way: np.ndarray  # bool [N] the opposite direction does not exist
    out_ptr: np.ndarray  # int64 [J + 1] roads out_ptr[j] to out_ptr[j + 1] start at junction j
    x_m: np.ndarray  # float64 [J] junctions, metres east of the centre
    y_m: np.ndarray  # float64 [J] metres north of the centre
    point_ptr: np.ndarray  # int64 [N + 1] into the points
    lon: np.ndarray  # float64 [P] degrees, 7 decimals
    lat: np.ndarray  # float64 [P]
    origin: np.ndarray  # int64 [R] road
    destination: np.ndarray  # int64 [R] road that continues it

    @property
    def roads(self) -> int:
        """Number of directed roads."""
        return len(self.start)


def build_network(roads: int, seed: int) -> CityNetwork:
    """A strongly connected city of about `roads` directed roads, a function of (`roads`, `seed`) alone."""
    radius_blocks = float(np.sqrt(roads / ROADS_PER_JUNCTION / np.pi))
    for attempt in range(10):
        rng = np.random.Generator(np.random.PCG64([seed, 1, attempt]))
        streets = _lay_streets(rng, radius_blocks)
        start, end, street, backward = _cut_to_size(streets, roads)
        # A bank of the river that hangs on one street comes or goes as a whole: then another city is drawn.
        if abs(len(start) - roads) <= SIZE_TOLERANCE * roads:
            return _with_geometry(rng, streets, start, end, street, backward)
    raise UserError(f"no city of {roads} roads found with seed {seed}: use another seed or number of roads")


# Streets ------------------------------------------------------------------------------------------------------


def _lay_streets(rng: np.random.Generator, radius_blocks: float) -> Streets:
    """All streets of a lattice that is larger than the city, most central first."""
    side = 2 * int(1.4 * radius_blocks + 4) + 1
    radius_m = radius_blocks * SPACING_M
    x_lattice, y_lattice = (axis.ravel() for axis in np.meshgrid(_gaps(rng, side), _gaps(rng, side), indexing="ij"))
    column_class, row_class = _line_classes(rng, side), _line_classes(rng, side)

    tail, head, highway, one_way, flip = _lattice_links(rng, side, column_class, row_class, radius_blocks)
    keep = np.ones(len(tail), dtype=bool)
    bank_distance_m = _bank_distance(rng, x_lattice, y_lattice, radius_m)
    if radius_blocks > 6:  # a village has no river and no park
        crosses_river = (bank_distance_m[tail] > 0) != (bank_distance_m[head] > 0)
        keep &= ~crosses_river | (highway <= PRIMARY)  # few bridges, so the way is not always straight
        minor = np.minimum(column_class[:, None], row_class[None, :]).ravel() >= RESIDENTIAL
        park = minor & _in_park(rng, x_lattice, y_lattice)
        keep &= ~(park[tail] | park[head]) | (highway < RESIDENTIAL)
    keep &= ~((highway >= RESIDENTIAL) & (rng.random(len(tail)) < MISSING_SHARE))

    x_m, y_m = _bent(rng, x_lattice, y_lattice, bank_distance_m, radius_m)
    tail, head = np.where(flip, head, tail), np.where(flip, tail, head)
    remoteness = _remoteness(rng, x_lattice, y_lattice)
    order = np.argsort(np.maximum(remoteness[tail], remoteness[head])[keep], kind="stable")
    return Streets(tail, head, highway, one_way, x_m, y_m).take(np.flatnonzero(keep)[order])


def _gaps(rng: np.random.Generator, side: int) -> np.ndarray:
    """Positions (m) of the lattice lines of one axis, unevenly spaced round 0."""
    position = np.cumsum(SPACING_M * rng.lognormal(0.0, 0.22, side))
    return position - position[side // 2]


def _line_classes(rng: np.random.Generator, side: int) -> np.ndarray:
    """The class of each lattice line: a primary through the centre, then outwards in turn."""
    classes = np.full(side, RESIDENTIAL)
    turn = (PRIMARY, SECONDARY, TERTIARY)
    for outwards in (1, -1):
        line, rank = side // 2, 0
        while 0 <= line < side:
            classes[line] = turn[rank % len(turn)]
            line, rank = line + outwards * int(rng.integers(3, 6)), rank + 1
    return classes


def _lattice_links(
    rng: np.random.Generator, side: int, column_class: np.ndarray, row_class: np.ndarray, radius_blocks: float
) -> tuple[np.ndarray, ...]:
    """tail, head, highway, one_way and flip (the one-way direction is head -> tail) of all lattice links."""
    along, line = (axis.ravel() for axis in np.meshgrid(np.arange(side - 1), np.arange(side), indexing="ij"))
    links = []
    for line_class, along_step, line_step in ((row_class, side, 1), (column_class, 1, side)):
        highway = line_class[line]
        stretch = (line, along // STRETCH)
        table = (side, side // STRETCH + 1)
        lower = (rng.random(table)[stretch] < DOWNGRADE_SHARE) & np.isin(highway, (SECONDARY, TERTIARY))
        highway = highway + lower
        highway = np.where((highway == RESIDENTIAL) & (rng.random(table)[stretch] < 0.10), LIVING_STREET, highway)
        highway = np.where((highway == RESIDENTIAL) & (rng.random(len(line)) < 0.02), UNCLASSIFIED, highway)
        highway = _with_rings(highway, line - side // 2, along + 0.5 - side // 2, radius_blocks)
        one_way = rng.random(table)[stretch] < ONE_WAY_SHARE[highway]
        flip = one_way & (rng.random(table)[stretch] < 0.5)
        tail = along * along_step + line * line_step
        links.append((tail, tail + along_step, highway, one_way, flip))
    links.append(_diagonal_avenue(side, offset=int(rng.integers(2, 4))))
    return tuple(np.concatenate(parts) for parts in zip(*links, strict=True))


def _with_rings(highway: np.ndarray, line: np.ndarray, along: np.ndarray, radius_blocks: float) -> np.ndarray:
    """A trunk ring at half the radius of a large city, a motorway ring further out in a very large one."""
    for ring_class, share, smallest in ((TRUNK, 0.5, 35), (MOTORWAY, 0.8, 70)):
        if radius_blocks >= smallest:
            half = round(share * radius_blocks)
            highway = np.where((np.abs(line) == half) & (np.abs(along) < half), ring_class, highway)
    return highway


def _diagonal_avenue(side: int, offset: int) -> tuple[np.ndarray, ...]:
    """A secondary that cuts the blocks corner to corner; it passes `offset` blocks from the centre."""
    step = np.arange(side - 1 - offset)
    tail = (step + offset) * side + step
    no = np.zeros(len(step), dtype=bool)
    return tail, tail + side + 1, np.full(len(step), SECONDARY), no, no


# Shape of the land --------------------------------------------------------------------------------------------


def _waves(
    rng: np.random.Generator, x_m: np.ndarray, y_m: np.ndarray, wavelengths_m: tuple[float, float], count: int
) -> np.ndarray:
    """A smooth random field in metres: `count` plane waves, each of slope at most 1."""
    field = np.zeros(len(x_m))
    for _ in range(count):
        wave_number = 2 * np.pi / rng.uniform(*wavelengths_m)
        direction, phase = rng.uniform(0, 2 * np.pi, 2)
        field += np.sin(wave_number * (np.cos(direction) * x_m + np.sin(direction) * y_m) + phase) / wave_number
    return field


def _bank_distance(rng: np.random.Generator, x_m: np.ndarray, y_m: np.ndarray, radius_m: float) -> np.ndarray:
    """Metres from the river, negative south of it."""
    course = 0.25 * radius_m + 0.25 * _waves(rng, x_m, np.zeros_like(x_m), (1500.0, 5000.0), 3)
    return y_m - course


def _in_park(rng: np.random.Generator, x_m: np.ndarray, y_m: np.ndarray) -> np.ndarray:
    """True on about 7 % of the land, in blobs of a few blocks."""
    field = _waves(rng, x_m, y_m, (700.0, 1800.0), 8)
    return field > np.quantile(field, 0.93)


def _bent(
    rng: np.random.Generator, x_m: np.ndarray, y_m: np.ndarray, bank_distance_m: np.ndarray, radius_m: float
) -> tuple[np.ndarray, np.ndarray]:
    """The lattice made irregular: river banks apart, smaller blocks in the centre, bends, jitter, a rotation."""
    y_m = y_m + 60.0 * np.sign(bank_distance_m) * np.exp(-np.abs(bank_distance_m) / 250.0)
    widen = 0.9 + 0.25 * np.minimum(np.hypot(x_m, y_m) / radius_m, 1.5) ** 2
    x_m, y_m = x_m * widen, y_m * widen
    x_m, y_m = (
        x_m + 0.13 * _waves(rng, x_m, y_m, (900.0, 4500.0), 4),
        y_m + 0.13 * _waves(rng, x_m, y_m, (900.0, 4500.0), 4),
    )
    x_m = x_m + rng.uniform(-0.13, 0.13, len(x_m)) * SPACING_M
    y_m = y_m + rng.uniform(-0.13, 0.13, len(y_m)) * SPACING_M
    angle = rng.uniform(0.1, 0.5)
    return np.cos(angle) * x_m - np.sin(angle) * y_m, np.sin(angle) * x_m + np.cos(angle) * y_m


def _remoteness(rng: np.random.Generator, x_m: np.ndarray, y_m: np.ndarray) -> np.ndarray:
    """Distance from the centre, stretched by direction: its level lines are the outline of the city."""
    bearing = np.arctan2(y_m, x_m)
    outline = np.ones(len(x_m))
    for lobes, height in OUTLINE_LOBES:
        outline += height * np.sin(lobes * bearing + rng.uniform(0, 2 * np.pi))
    return np.hypot(x_m, y_m) / outline


# Roads --------------------------------------------------------------------------------------------------------


def _cut_to_size(streets: Streets, roads: int) -> tuple[np.ndarray, ...]:
    """The strongly connected part of the innermost streets that comes closest to `roads` roads."""
    roads_within = np.cumsum(np.where(streets.one_way, 1, 2))
    best: tuple[np.ndarray, ...] = ()
    goal = roads
    for _ in range(20):
        count = int(np.searchsorted(roads_within, goal)) + 1
        part = _strongly_connected(streets.take(slice(count)))
        if not best or abs(len(part[0]) - roads) < abs(len(best[0]) - roads):
            best = part
        if abs(len(best[0]) - roads) <= 0.005 * roads:
            break
        # Most of what was missing is dead ends at the rim, which more streets outside connect.
        goal += int(np.sign(roads - len(part[0]))) * max(1, abs(roads - len(part[0])))
    return best


def _strongly_connected(streets: Streets) -> tuple[np.ndarray, ...]:
    """start, end, street and backward of the roads that all reach each other, ordered by start junction."""
    two_way = np.flatnonzero(~streets.one_way)
    street = np.concatenate([np.arange(len(streets.tail)), two_way])
    backward = np.arange(len(street)) >= len(streets.tail)
    start = np.where(backward, streets.head[street], streets.tail[street])
    end = np.where(backward, streets.tail[street], streets.head[street])
    order = np.lexsort((end, start))
    start, end, street, backward = start[order], end[order], street[order], backward[order]
    origin, destination = _relations(start, end, street, len(streets.x_m))
    graph = csr_array((np.ones(len(origin), dtype=np.int8), (origin, destination)), shape=(len(start),) * 2)
    _, part = connected_components(graph, directed=True, connection="strong")
    largest = part == np.argmax(np.bincount(part))
    return start[largest], end[largest], street[largest], backward[largest]


def _relations(start: np.ndarray, end: np.ndarray, street: np.ndarray, junctions: int) -> tuple[np.ndarray, np.ndarray]:
    """(origin, destination) roads: all that continue, the U-turn only where nothing else does.

    Leaving roads out can only add U-turns to those that stay, so a strongly connected part stays one.
    """
    out_ptr = np.searchsorted(start, np.arange(junctions + 1))
    count = out_ptr[end + 1] - out_ptr[end]
    origin = np.repeat(np.arange(len(start)), count)
    destination = ranges(out_ptr[end], count)
    keep = (street[origin] != street[destination]) | (count[origin] == 1)
    return origin[keep], destination[keep]


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (count[0] numbers), then the same from first[1], and so on."""
    begin = np.cumsum(count) - count
    return np.arange(int(count.sum())) + np.repeat(first - begin, count)


def _with_geometry(
    rng: np.random.Generator,
    streets: Streets,
    start: np.ndarray,
    end: np.ndarray,
    street: np.ndarray,
    backward: np.ndarray,
) -> CityNetwork:
    """The network of the given roads, with polylines, lengths and relations; junctions renumbered."""
    used_street, street = np.unique(street, return_inverse=True)
    used_junction, renumbered = np.unique(np.concatenate([start, end]), return_inverse=True)
    start, end = renumbered[: len(start)], renumbered[len(start) :]
    kept = streets.take(used_street)
    street_ptr, street_lon, street_lat = _polylines(rng, kept)
    variant = np.where(rng.random(len(used_street)) < LIST_SHARE, rng.integers(1, 4, len(used_street)), 0)
    variant[kept.highway == UNCLASSIFIED] = 0

    points = np.diff(street_ptr)[street]
    point_ptr = np.concatenate([[0], np.cumsum(points)])
    forward_point = ranges(street_ptr[street], points)
    mirrored = np.repeat(street_ptr[street] + street_ptr[street + 1] - 1, points) - forward_point
    point = np.where(np.repeat(backward, points), mirrored, forward_point)
    origin, destination = _relations(start, end, street, len(used_junction))
    return CityNetwork(
        start=start,
        end=end,
        highway=kept.highway[street],
        highway_text=variant[street] * len(HIGHWAYS) + kept.highway[street],
        length_m=_polyline_lengths(street_lon, street_lat, street_ptr)[street],
        one_way=np.bincount(street)[street] == 1,
        out_ptr=np.searchsorted(start, np.arange(len(used_junction) + 1)),
        x_m=streets.x_m[used_junction],
        y_m=streets.y_m[used_junction],
        point_ptr=point_ptr,
        lon=street_lon[point],
        lat=street_lat[point],
        origin=origin,
        destination=destination,
    )


def _polylines(rng: np.random.Generator, streets: Streets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(offsets, lon, lat) of the points of each street, degrees with 7 decimals; about a third are curved."""
    count = len(streets.tail)
    inner = np.where(rng.random(count) < 0.35, rng.integers(1, 5, count), 0)
    bulge = rng.uniform(0.04, 0.12, count) * rng.choice([-1.0, 1.0], count)
    half_waves = np.where(rng.random(count) < 0.2, 2, 1)  # a few bend both ways
    points = inner + 2
    ptr = np.concatenate([[0], np.cumsum(points)])
    street = np.repeat(np.arange(count), points)
    at = ranges(np.zeros(count, dtype=np.int64), points) / (points[street] - 1)  # 0 at the tail, 1 at the head

    x_tail, y_tail = streets.x_m[streets.tail], streets.y_m[streets.tail]
    east, north = streets.x_m[streets.head] - x_tail, streets.y_m[streets.head] - y_tail
    # Zero at both ends by a mask and not by sin(pi), so that a junction is the same number in all its streets.
    aside = np.where((at > 0) & (at < 1), bulge[street] * np.sin(np.pi * half_waves[street] * at), 0.0)
    x = x_tail[street] + at * east[street] - aside * north[street]
    y = y_tail[street] + at * north[street] + aside * east[street]
    x, y = (
        np.where(at == 1, streets.x_m[streets.head][street], x),
        np.where(at == 1, streets.y_m[streets.head][street], y),
    )
    return ptr, *_to_degrees(x, y)


def _to_degrees(x_m: np.ndarray, y_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude, 7 decimals, of plane coordinates."""
    lon, lat = CENTRE_LON_LAT
    metres_per_degree = np.pi / 180 * EARTH_RADIUS_M
    east = x_m / (metres_per_degree * np.cos(np.radians(lat)))
    return np.round(lon + east, 7), np.round(lat + y_m / metres_per_degree, 7)


def _polyline_lengths(lon: np.ndarray, lat: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    """Haversine length in metres of each polyline."""
    lon_rad, lat_rad = np.radians(lon), np.radians(lat)
    chord = (
        np.sin(np.diff(lat_rad) / 2) ** 2
        + np.cos(lat_rad[:-1]) * np.cos(lat_rad[1:]) * np.sin(np.diff(lon_rad) / 2) ** 2
    )
    piece_m = 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(chord))
    piece_m[ptr[1:-1] - 1] = 0.0  # from the last point of one polyline to the first of the next
    return np.add.reduceat(piece_m, ptr[:-1])
