"""The figures of the notebook of public HOSER, and those of its fork, by their own rules."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.data.road_network import RoadNetwork
from utils.data.trips import Trips
from utils.judging.cells import cell_ids, fork_cells, match_in_turn, published_grid
from utils.judging.distributions import Reference, divergence, jensen_shannon
from utils.judging.figures import Column, Figure, figures_of
from utils.judging.generated import first_roads, last_roads
from utils.judging.pairs import pair_distances
from utils.judging.sphere import MEAN_RADIUS_KM, NOTEBOOK_RADIUS_KM

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """The figures of a block, and beside them its plain numbers under the names of their source."""

    figures: list[Figure]
    numbers: dict[str, float | int | str | list[int]]


def published_block(
    references: dict[str, Reference], real: Trips, generated: Trips, network: RoadNetwork, seed: int
) -> Block:
    """The notebook's figures: three distributions, and pairs of trips with the same cells of 200 m at both ends."""
    figures, numbers = [], {}
    for key, unit in (("distance", "km"), ("radius", "km"), ("duration", "min")):
        found, means = _distribution(references[key], key, unit, generated, seed)
        figures += found
        numbers |= means
    ends = np.concatenate([first_roads(real), last_roads(real), first_roads(generated), last_roads(generated)])
    centers = network.center.min(axis=0), network.center.max(axis=0)
    grid = published_grid(network.center[ends], np.stack(centers))
    cells = cell_ids(grid.cells(network.center))
    keys = [np.stack([cells[first_roads(trips)], cells[last_roads(trips)]], axis=1) for trips in (generated, real)]
    pairs = match_in_turn(*keys)
    found = pair_distances(network.center, generated, real, pairs)
    columns = [
        Column("hausdorff_km", "Hausdorff distance", "km", found.hausdorff * NOTEBOOK_RADIUS_KM),
        Column("dtw_km", "DTW", "km", found.dtw * NOTEBOOK_RADIUS_KM),
        Column("edr", "EDR, 100 m", "", found.edr),
        Column("edr_published", "EDR, coordinates swapped", "", found.edr_published),
    ]
    figures += figures_of(columns, seed)
    numbers |= {figure.key: figure.value for figure in figures[-len(columns) :]}
    numbers |= {
        # Under the names of the golden numbers: no approximation, and no swap, is in these.
        "reference_exact_dtw_km": numbers["dtw_km"],
        "reference_edr_lat_lon_in_order": numbers["edr"],
        "pairs_compared": len(pairs),
        "matched_od_cells": len(_common(*keys)),
        "generated_od_cells": len(np.unique(keys[0], axis=0)),
        "grid": list(grid.shape),
        "map": grid.name,
    }
    return Block(figures, numbers)


def _distribution(
    reference: Reference, key: str, unit: str, generated: Trips, seed: int
) -> tuple[list[Figure], dict[str, float]]:
    """Divergence and means of one of the notebook's three distributions."""
    figures = divergence(reference, generated, seed)
    real, made = reference.real.value, reference.quantity.measure(generated).value
    sources = (("gen", made, generated), ("real", real, reference.real_trips))
    for name, values, trips in sources:
        per_trip = reference.quantity.measure(trips)
        sums = np.add.reduceat(np.append(per_trip.value, 0.0), per_trip.offset[:-1])
        counts = np.diff(per_trip.offset)
        column = Column(
            f"{key}_{name}_mean_{unit}",
            f"{reference.quantity.label}, mean",
            unit,
            np.where(counts > 0, sums, 0.0),
            counts.astype(np.float64),
            len(values),
            f"{key}_gen_mean_{unit}" if name == "real" else "",
        )
        figures += figures_of([column], seed)
    numbers = {figure.key: figure.value for figure in figures if "_w1_" not in figure.key}
    return figures, numbers | {f"{key}_real_max_{unit}": float(real.max(initial=0.0))}


def _common(a: Ints, b: Ints) -> set[tuple[int, ...]]:
    """Rows that both [n, 2] and [m, 2] have."""
    return set(map(tuple, a.tolist())) & set(map(tuple, b.tolist()))


def fork_block(
    references: dict[str, Reference], real: Trips, generated: Trips, network: RoadNetwork, seed: int
) -> Block:
    """The figures of the fork (matercomus/HOSER): cells of 0.001 degrees, and distances per point.

    Trips of one road have no length, no destination and no pair there; a distance of no pair is 0.
    """
    longer = {name: trips.select(np.diff(trips.offset) > 1) for name, trips in (("real", real), ("gen", generated))}
    numbers: dict[str, float | int] = {}
    for key, name in (("distance", "Distance"), ("duration", "Duration"), ("radius", "Radius")):
        values = {}
        for source, trips in (("real", real), ("gen", generated)):
            kept = longer[source] if key == "distance" else trips
            values[source] = references[key].quantity.measure(kept)
        places, width = _places(references[key], values["real"].value, values["gen"].value)
        counts = [np.bincount(place, minlength=width).astype(np.float64) for place in places]
        numbers[f"{name}_JSD"] = float(jensen_shannon(*counts))
        numbers |= {f"{name}_{source}_mean": _mean(values[source].value) for source in ("real", "gen")}
    cells = cell_ids(fork_cells(network.center))
    keys = {
        name: np.stack([cells[first_roads(trips)], cells[last_roads(trips)]], axis=1) for name, trips in longer.items()
    }
    pairs = match_in_turn(keys["gen"], keys["real"])
    found = pair_distances(network.center, longer["gen"], longer["real"], pairs)
    hausdorff, dtw = found.hausdorff * MEAN_RADIUS_KM, found.dtw * MEAN_RADIUS_KM
    columns = [
        Column("Hausdorff_km", "Hausdorff distance", "km", hausdorff),
        Column("Hausdorff_norm", "Hausdorff distance per point", "km", hausdorff / found.mean_length),
        Column("DTW_km", "DTW", "km", dtw),
        Column("DTW_norm", "DTW per point", "km", dtw / found.mean_length),
        Column("EDR", "EDR, 100 m", "", found.edr),
    ]
    figures = figures_of(columns, seed)
    numbers |= {figure.key: figure.value if len(pairs) else 0.0 for figure in figures}
    rates, counts = _match_rates(cells, real, generated, keys, seed)
    numbers |= counts | {"trajectory_comparisons": len(pairs)}
    numbers |= {"real_loaded": len(real), "generated_loaded": len(generated)}
    return Block(figures + rates, numbers)


def _places(reference: Reference, real: NDArray, made: NDArray) -> tuple[list[Ints], int]:
    """The bins of values; their edges are made of these real values."""
    edges = reference.quantity.edges(real)
    return [np.searchsorted(edges, values, side="right") - 1 for values in (real, made)], len(edges) - 1


def _mean(values: NDArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _match_rates(
    cells: Ints, real: Trips, generated: Trips, keys: dict[str, Ints], seed: int
) -> tuple[list[Figure], dict[str, float | int]]:
    """Shares of generated trips, and of pairs of cells, whose ends are in cells where real trips have theirs."""
    has_end = np.diff(generated.offset) > 1
    origin = np.isin(cells[first_roads(generated)], cells[first_roads(real)])
    destination = np.isin(cells[last_roads(generated)], cells[last_roads(real)]) & has_end
    real_pairs, made_pairs = (np.unique(keys[name], axis=0) for name in ("real", "gen"))
    both = _common(made_pairs, real_pairs)
    is_matched = np.array([tuple(pair) in both for pair in made_pairs.tolist()], dtype=bool)
    matches = {
        "origin_match": ("origins in a cell of real ones", origin),
        "destination_match": ("destinations in a cell of real ones", destination),
        "od_pair_match": ("distinct pairs of cells that real trips have, too", is_matched),
        "both_correct": ("trips with both ends in cells of real ones", origin & destination),
    }
    figures, numbers = [], {}
    for key, (label, flags) in matches.items():
        figures += figures_of([Column(f"{key}_rate", label, "", flags.astype(np.float64))], seed)
        numbers |= {f"{key}_count": int(flags.sum()), f"{key}_rate": figures[-1].value if len(flags) else 0.0}
    return figures, numbers | {
        "matched_od_pairs": len(both),
        "total_generated_od_pairs": len(made_pairs),
        "total_generated_trajectories": len(generated),
    }
