"""What was parsed once is kept beside the data: the road network and the trips, by a hash of all they depend on."""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from utils.data.road_network import RoadNetwork, read_road_network
from utils.data.trips import REACHED, Trips, parse_trips, usable_trips
from utils.errors import UserError
from utils.files.atomic import is_writable, remove
from utils.files.tensor_files import load_tensors, save_tensors

# Raise them when the content of what is kept changes.
NETWORK_VERSION = 2
TRIPS_VERSION = 2
FORMER_NAMES = {"next_rank": "label"}  # of fields, in caches that earlier versions wrote
LATER_NAMES = ("is_missed",)  # which caches of earlier versions do not have, and for which the default is right


def load_network(folder: Path) -> RoadNetwork:
    """The road network of a data set, from the cache if it was made of the same files."""
    paths = folder / "roadmap.geo", folder / "roadmap.rel"

    def key() -> str:
        return _key(f"network {NETWORK_VERSION}", paths)

    cache = cache_folder(folder) / f"network-{key()}.pt"
    network = _read(cache, RoadNetwork)
    if network is None:
        network = read_road_network(folder)
        _check_unchanged(cache, key(), folder)
        _write(network, cache, "network")
    return network


def load_trips(
    folder: Path,
    split: str,
    network: RoadNetwork,
    on_bad_trip: str,
    max_len: int | None = None,
    status: str = REACHED,
) -> Trips:
    """Trips of a split, parsed once, then from the cache if it was made of the same file and relations.

    Raises:
        UserError: as `read_trips`, whose arguments these are.
    """
    path = folder / f"{split}.csv"

    def key() -> str:
        return _key(f"trips {TRIPS_VERSION}", [path], (network.reach_ptr, network.reach_road))

    cache = cache_folder(folder) / f"{split}-{key()}.pt"
    trips = _read(cache, Trips)
    if trips is None:
        trips = parse_trips(path, network)
        _check_unchanged(cache, key(), path)
        _write(trips, cache, split)
    return usable_trips(trips, path, on_bad_trip, max_len, status)


def cache_folder(folder: Path) -> Path:
    """Where derived files of a data set are kept: beside it, or under data/ where it is read-only."""
    if is_writable(folder):
        return folder / ".cache"
    identity = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=6).hexdigest()
    return Path("data") / ".cache" / f"{folder.resolve().name}-{identity}"


def _key(version: str, paths: Iterable[Path], arrays: Iterable[np.ndarray] = ()) -> str:
    """Hash of all that depends on these."""
    digest = hashlib.blake2b(version.encode(), digest_size=10)
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check_unchanged(cache: Path, key: str, path: Path) -> None:
    """What was read must be what the key of its cache is made of."""
    if not cache.name.endswith(f"-{key}.pt"):
        raise UserError(f"{path}: has changed while it was read; run the command again")


def _read(cache: Path, kind: type) -> Any:
    """A record of the dataclass `kind`, or None if there is none that can be used."""
    if not cache.exists():
        return None
    try:
        content = load_tensors(cache, mmap=True)
        content |= {new: content[old] for old, new in FORMER_NAMES.items() if old in content}
        values = {
            field.name: content[field.name]
            for field in dataclasses.fields(kind)
            if field.name in content or field.name not in LATER_NAMES
        }
        return kind(**{name: value.numpy() if isinstance(value, Tensor) else value for name, value in values.items()})
    except UserError as error:
        logger.warning(f"{error}; the cache is written again")
    except (KeyError, IndexError, TypeError, AttributeError):
        logger.warning(f"{cache}: holds something else than it should; the cache is written again")
    return None


def _write(record: Any, cache: Path, kind: str) -> None:
    """Keep a dataclass of arrays and plain values; older ones of its kind are removed."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    content = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}
    try:
        save_tensors(content, cache)
        for old in cache.parent.glob(f"{kind}-*.pt"):
            if old != cache:
                remove(old)
    except (UserError, OSError) as error:
        logger.warning(f"{error}; training continues without the cache")
