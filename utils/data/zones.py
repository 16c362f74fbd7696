"""Zones: a balanced partition of the roads, and how often trips pass from one zone to another."""

import tokenize
from pathlib import Path

import kahip
import numpy as np
from numpy.typing import NDArray

from utils.data.csv_reader import distinct_sorted, parse_integers
from utils.data.road_network import RoadNetwork
from utils.data.trips import Trips
from utils.errors import UserError
from utils.files.atomic import atomic_write
from utils.files.file_kinds import foreign_kind, not_utf8

Ints = NDArray[np.int64]

IMBALANCE = 0.03  # zones may be this much larger than the average, KaHIP's default
ZONE_KEY = "road_network_encoder_config.zone_id_num_embeddings"


def partition_roads(network: RoadNetwork, num_zones: int) -> Ints:
    """Zone of each road, [N], by KaHIP's kaffpa (strong preset, seed 0) on the graph of relations.

    Raises:
        UserError: fewer roads than zones.
    """
    num_roads = network.num_roads
    if num_roads < num_zones:
        raise UserError(
            f"{ZONE_KEY}: found {num_zones}, expected at most {num_roads} (the network has {num_roads} roads); lower it"
        )
    owner = np.repeat(np.arange(num_roads), np.diff(network.reach_ptr))
    i, j = np.concatenate([owner, network.reach_road]), np.concatenate([network.reach_road, owner])
    key = distinct_sorted((i * num_roads + j)[i != j])
    neighbour = key % num_roads
    ptr = np.searchsorted(key // num_roads, np.arange(num_roads + 1))
    weights = [1] * num_roads, [1] * len(neighbour)
    _, zone = kahip.kaffpa(
        weights[0], ptr.tolist(), weights[1], neighbour.tolist(), num_zones, IMBALANCE, True, 0, kahip.STRONG
    )
    return np.array(zone, dtype=np.int64)


def read_partition(path: Path, num_roads: int, num_zones: int) -> Ints:
    """Zone of each road from `road_network_partition`, one zone per line.

    Raises:
        UserError: another number of lines than roads, or a zone that the model has no embedding for.
    """
    try:
        if kind := foreign_kind(path):
            raise UserError(f"{path}: {kind}")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}{not_utf8(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != num_roads:
        raise UserError(
            f"{path}: found {len(lines)} lines, expected {num_roads} (one zone for each road of roadmap.geo); "
            "delete the file to have it computed again"
        )
    zone = parse_integers(lines)
    if zone is None or len(zone) != num_roads:
        line = next(i for i, text in enumerate(lines) if _zone_id(text) is None)
        raise UserError(f"{path}, line {line + 1}: found {lines[line]!r}, expected a zone id")
    remedy = "delete the file to have it computed again"
    if (zone < 0).any():
        line = int((zone < 0).argmax())
        raise UserError(f"{path}, line {line + 1}: found zone {zone[line]}, expected zone ids of 0 or more; {remedy}")
    if (zone >= num_zones).any():
        line = int((zone >= num_zones).argmax())
        raise UserError(
            f"{path}, line {line + 1}: found zone {zone[line]}, but {ZONE_KEY} is {num_zones} (zones 0 to "
            f"{num_zones - 1}): set it to {zone.max() + 1}, the zones of this file, or {remedy}"
        )
    return zone


def _zone_id(text: str) -> int | None:
    values = parse_integers([text])
    return int(values[0]) if values is not None and len(values) == 1 else None


def count_transitions(road2zone: Ints, trips: Trips) -> Ints:
    """How often trips step from one zone into a different one, [Z, Z] for zones 0 to the largest used."""
    num_zones = int(road2zone.max()) + 1
    zone = road2zone[trips.road_id]
    before, after = zone[:-1], zone[1:]
    within_trip = np.ones(len(before), dtype=bool)
    within_trip[trips.offset[1:-1] - 1] = False
    moved = within_trip & (before != after)
    counts = np.bincount(before[moved] * num_zones + after[moved], minlength=num_zones**2)
    return counts.reshape(num_zones, num_zones)


def read_transitions(path: Path, road2zone: Ints, num_zones: int) -> Ints:
    """Transition counts from `zone_trans_mat.npy`, [Z', Z'].

    Raises:
        UserError: not such a matrix.
    """
    remedy = "delete the file to have it computed again"
    try:
        if kind := foreign_kind(path, zip_expected=True):
            raise UserError(f"{path}: {kind}")
        matrix = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"{path}: not a NumPy array file ({error}); {remedy}") from None
    largest_zone = int(road2zone.max())
    square = getattr(matrix, "ndim", 0) == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or not largest_zone < matrix.shape[0] <= num_zones:
        shape = " x ".join(map(str, getattr(matrix, "shape", ())))
        raise UserError(
            f"{path}: found an array of {shape or 'no'} counts, expected {largest_zone + 1} x {largest_zone + 1} "
            f"(zones of road_network_partition; at most {num_zones} x {num_zones}); {remedy}"
        )
    if matrix.dtype.kind not in "iuf" or not np.isfinite(matrix).all() or (np.asarray(matrix) < 0).any():
        raise UserError(f"{path}: found entries that are no counts, expected numbers of 0 or more; {remedy}")
    return np.array(matrix)


def zone_edges(transitions: Ints) -> tuple[Ints, NDArray[np.float32]]:
    """Edges [2, Ez] between zones with transitions, and weights D^-1/2 M D^-1/2 with D = max(row sum, 1)."""
    edges = np.stack(transitions.nonzero())
    counts = transitions.astype(np.float32)
    scale = np.float32(1.0) / np.sqrt(np.maximum(counts.sum(axis=1), np.float32(1.0)))
    weights = counts * scale[:, None] * scale[None, :]
    return edges, weights[edges[0], edges[1]]


def write_partition(path: Path, road2zone: Ints) -> None:
    """Write `road_network_partition`."""
    text = "".join(f"{zone}\n" for zone in road2zone)
    atomic_write(path, lambda file: file.write(text.encode()))


def write_transitions(path: Path, transitions: Ints) -> None:
    """Write `zone_trans_mat.npy`."""
    atomic_write(path, lambda file: np.save(file, transitions))
