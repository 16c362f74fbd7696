"""A data set: where its files are, its road network with zones, and its trips."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from loguru import logger

from models.batch import NetworkFeatures
from utils.config import PROJECT, Config, load_config
from utils.data.cache import cache_folder, load_network, load_trips
from utils.data.road_network import RoadNetwork, describe_far_roads
from utils.data.trips import REACHED, Trips, read_trips
from utils.data.zones import (
    ZONE_KEY,
    count_transitions,
    partition_roads,
    read_partition,
    read_transitions,
    write_partition,
    write_transitions,
    zone_edges,
)
from utils.errors import UserError
from utils.files.atomic import is_writable
from utils.files.checksums import file_digest
from utils.files.locks import folder_lock

PUBLIC_FILES = ("roadmap.geo", "roadmap.rel", "train.csv", "val.csv", "test.csv")
COMPANIONS = ("road_network_partition", "zone_trans_mat.npy")
DEMO = "Demo"
DEMO_SIZE = {"roads": 1000, "trips": 4000, "seed": 0}


@dataclass(frozen=True)
class City:
    """The static part of a data set, and how its trips are read."""

    folder: Path
    network: RoadNetwork
    features: NetworkFeatures
    transitions: np.ndarray  # [Z, Z], counts of steps between zones that the features were made of
    on_bad_trip: str = "error"  # data.on_bad_trip
    max_len: int | None = None  # trajectory_encoder_config.max_len, steps of the longest trip that the model takes
    status: str = REACHED  # data.status

    def trips(self, split: str) -> Trips:
        """The trips of `train`, `val` or `test`; parsed once, then from a cache beside the data."""
        return load_trips(self.folder, split, self.network, self.on_bad_trip, self.max_len, self.status)

    def trips_of(self, path: Path) -> Trips:
        """The trips of any CSV file, by the rules that hold for the splits."""
        return read_trips(path, self.network, self.on_bad_trip, self.max_len, self.status)


def file_digests(folder: Path) -> dict[str, str]:
    """Hashes of all files of a data set that training reads, by their names."""
    paths = [folder / name for name in PUBLIC_FILES] + [_companion(folder, name) for name in COMPANIONS]
    return {path.name: file_digest(path)[:12] for path in paths}


def model_inputs(
    dataset: str, data_dir: str | Path | None = None, config_path: str | None = None, overrides: Sequence[str] = ()
) -> tuple[Config, NetworkFeatures]:
    """What `HOSER` is built from: `HOSER(*model_inputs("Beijing"))`."""
    config = load_config(dataset, config_path, overrides)
    return config, load_city(dataset, config, data_dir).features


def load_city(dataset: str, config: Config, data_dir: str | Path | None = None) -> City:
    """Read the roads and zones of a data set; zones are computed once where they are absent.

    Args:
        dataset: its name; the Demo city is built if it is not there.
        config: gives the number of zones.
        data_dir: its folder, by default `data/{dataset}`.

    Raises:
        UserError: files are missing or malformed.
    """
    folder, network = load_roads(dataset, data_dir)
    _check_sizes(config, network)
    if far := describe_far_roads(network):
        logger.warning(
            f"{folder / 'roadmap.geo'}, {far}: a mistake? All coordinates are standardised, and a "
            "teacher's grid is laid, over all roads"
        )
    road2zone, transitions = _load_zones(folder, network, config)
    used, configured = int(road2zone.max()) + 1, config.road_network_encoder_config.zone_id_num_embeddings
    if used < configured:
        logger.warning(f"road_network_partition has {used} zones, fewer than {ZONE_KEY} = {configured}")
    zone_edge_index, zone_edge_weight = zone_edges(transitions)
    arrays = vars(network) | {
        "zone_edge_index": zone_edge_index,
        "zone_edge_weight": zone_edge_weight,
        "road2zone": road2zone,
    }
    # Features of roads have the same names in both records.
    features = NetworkFeatures(**{item.name: torch.from_numpy(arrays[item.name]) for item in fields(NetworkFeatures)})
    rules = config.data.on_bad_trip, config.trajectory_encoder_config.max_len, config.data.status
    return City(folder, network, features, transitions, *rules)


def load_roads(dataset: str, data_dir: str | Path | None = None) -> tuple[Path, RoadNetwork]:
    """The folder and the roads of a data set, without zones; the Demo city is built if it is not there.

    Raises:
        UserError: files are missing or malformed.
    """
    folder = find_folder(dataset, data_dir)
    if _is_unbuilt_demo(dataset, data_dir):
        with folder_lock(folder.parent, wait=True):
            if _is_unbuilt_demo(dataset, data_dir):  # another process may have built it while we waited
                _build_demo(folder)
    return folder, load_network(folder)


def _build_demo(folder: Path) -> None:
    # With SciPy, whose import takes a third of a second.
    from utils.data.synthetic.writer import CitySpec, build_city

    logger.info(f"building the Demo city in {folder} (once)")
    build_city(folder, CitySpec(name=DEMO, **DEMO_SIZE))


def _load_zones(folder: Path, network: RoadNetwork, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Zone of each road and transition counts; what is absent is computed and written."""
    num_zones = config.road_network_encoder_config.zone_id_num_embeddings
    partition_path, matrix_path = (_companion(folder, name) for name in COMPANIONS)
    if partition_path.exists() and matrix_path.exists():
        road2zone = read_partition(partition_path, network.num_roads, num_zones)
        return road2zone, read_transitions(matrix_path, road2zone, num_zones)
    if not partition_path.exists():
        logger.info(f"partitioning {network.num_roads} roads into {num_zones} zones (KaHIP; once)")
        write_partition(partition_path, partition_roads(network, num_zones))
    road2zone = read_partition(partition_path, network.num_roads, num_zones)
    max_len = config.trajectory_encoder_config.max_len
    train = load_trips(folder, "train", network, config.data.on_bad_trip, max_len, config.data.status)
    counts = count_transitions(road2zone, train)
    if matrix_path.exists() and not np.array_equal(read_transitions(matrix_path, road2zone, num_zones), counts):
        # Counts of another partition than the one just made mean nothing.
        logger.warning(f"{matrix_path}: does not belong to the new partition; counted again")
    write_transitions(matrix_path, counts)
    return road2zone, counts


def find_folder(dataset: str, data_dir: str | Path | None = None) -> Path:
    """The folder of a data set, after checking that all files are in it (the Demo city may be built yet).

    Raises:
        UserError: lists what is missing and where to get it.
    """
    check_dataset_name(dataset)
    folder = Path(data_dir) if data_dir is not None else Path("data") / dataset
    missing = [name for name in PUBLIC_FILES if not _asked((folder / name).is_file)]
    if missing and not _is_unbuilt_demo(dataset, data_dir):
        names = ", ".join(missing)
        is_there = _asked(folder.is_dir)
        raise UserError(
            f"{folder}: {'missing' if is_there else 'no such folder; it needs'} {names}. "
            "The public data sets are at Hugging Face, dataset caoji2001/HOSER-dataset: place their files there, "
            "or name another folder with --data_dir. --dataset Demo runs without a download"
            f"{'' if is_there or data_dir is not None else _proposal(dataset)}"
        )
    return folder


def _proposal(dataset: str) -> str:
    """Which data set may be meant, if one is there under a similar name, or elsewhere."""
    if _asked((PROJECT / "data" / dataset).is_dir):
        return f". Paths are relative to the working folder; {PROJECT / 'data' / dataset} is there"
    there = [path.name for path in Path("data").glob("[!.]*") if _asked(path.is_dir)]
    by_lower_case = {name.lower(): name for name in (*there, DEMO)}
    close = difflib.get_close_matches(dataset.lower(), by_lower_case, n=1)
    return f". Did you mean --dataset {by_lower_case[close[0]]}?" if close else ""


def _asked(question: Callable[[], bool]) -> bool:
    """The answer of the file system; no where it cannot be asked (no permission, or a name too long)."""
    try:
        return question()
    except OSError:
        return False


def _is_unbuilt_demo(dataset: str, data_dir: str | Path | None) -> bool:
    folder = Path("data") / DEMO
    return dataset == DEMO and data_dir is None and not any((folder / name).exists() for name in PUBLIC_FILES)


def check_dataset_name(dataset: str) -> None:
    """Refuse names that would lead out of data/, save/ or log/."""
    plain = re.fullmatch(r"[^./\\-][^/\\]{0,99}", dataset) and dataset.isprintable()
    if not plain or dataset != dataset.strip():
        raise UserError(
            f"--dataset {dataset!r}: expected the name of a folder below data/, such as Beijing: up to 100 characters, "
            "no slashes, no dot or dash at its beginning, no blank at either end"
        )


def _companion(folder: Path, name: str) -> Path:
    """Place of a file that is computed when absent: in the data set's folder if it can be."""
    path = folder / name
    return path if path.exists() or is_writable(folder) else cache_folder(folder) / name


def _check_sizes(config: Config, network: RoadNetwork) -> None:
    """Sizes that a configuration file may fix must be those of the data."""
    section = config.road_network_encoder_config
    found_types = len(network.highway_classes)
    for key, given, found in (
        ("road_id_num_embeddings", section.road_id_num_embeddings, network.num_roads),
        ("type_num_embeddings", section.type_num_embeddings, found_types),
    ):
        if given is not None and given != found:
            raise UserError(
                f"road_network_encoder_config.{key}: found {given}, expected {found} as in roadmap.geo (or nothing)"
            )
    if network.num_roads < section.zone_id_num_embeddings:
        raise UserError(
            f"{ZONE_KEY}: found {section.zone_id_num_embeddings}, expected at most {network.num_roads} "
            f"(the network has {network.num_roads} roads); lower it with --set {ZONE_KEY}=N"
        )
