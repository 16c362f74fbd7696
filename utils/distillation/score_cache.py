"""The teacher's log-probabilities of all candidates of a split, computed once and kept on disk.

A frozen teacher always says the same of the same data, so an epoch of distillation need not ask it again.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from models.batch import Batch
from utils.data.loader import BatchLoader
from utils.distillation.teacher_scores import TeacherReader
from utils.errors import UserError
from utils.files.atomic import remove, remove_temporary_files
from utils.files.disk_space import warn_if_short
from utils.files.locks import folder_lock
from utils.files.tensor_files import load_tensors, save_tensors
from utils.runtime.progress import progress
from utils.runtime.signals import take_signals

VERSION = 1  # raise it when the content of the cache changes
BYTES = 2  # of a candidate
TRIPS_PER_PART = 1024
TRIPS_PER_BATCH = 256


@dataclass(frozen=True)
class CachedLogProbs:
    """Log-probabilities in the order of the file, gathered for a batch."""

    values: Tensor  # [all candidates of the split] float16
    first_candidate: Tensor  # [P] int64, place of each position's first candidate in `values`

    def __call__(self, batch: Batch) -> Tensor:
        """[K] float32."""
        return self.values[_places(self.first_candidate, batch)].float()


def cached_log_probs(reader: TeacherReader, loader: BatchLoader, folder: Path, key: str) -> CachedLogProbs:
    """The log-probabilities of the loader's trips; what is not in `folder` yet is computed.

    Args:
        reader: the teacher.
        loader: a split.
        folder: where caches are kept.
        key: hash of all that the values depend on (`cache_key`).

    A killed computation is resumed: finished parts are kept. A second process waits for the first.
    """
    path = folder / f"teacher-{key}.pt"
    values = _read(path, loader)
    if values is None:
        parts = folder / f"teacher-{key}.parts"
        with folder_lock(parts, wait=True):
            values = _read(path, loader)
            if values is None:
                remove_temporary_files(parts)
                size = BYTES * loader.num_candidates
                warn_if_short(parts, 2 * size, parts.glob("*.pt"), spare=0)  # the parts, and all in one
                logger.info(f"computing the teacher's scores of {loader.num_trips:,} trips (once): {path}")
                values = _compute(reader, loader, parts)
                save_tensors({"log_probs": values}, path)
            for part in parts.glob("*.pt"):
                remove(part)
    return CachedLogProbs(values.to(loader.device), loader.first_candidate.to(loader.device))


def cache_key(teacher_path: Path, loader: BatchLoader, token_of_road: Tensor, window: int) -> str:
    """Hash of the teacher file, the trips and their candidates, the grid (as tokens) and the window."""
    digest = hashlib.blake2b(f"teacher {VERSION} window {window}".encode(), digest_size=12)
    with teacher_path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "blake2b").digest())
    digest.update(loader.data_key.encode())
    digest.update(np.ascontiguousarray(token_of_road.cpu().numpy()).data)
    return digest.hexdigest()


def _places(first_candidate: Tensor, batch: Batch) -> Tensor:
    return first_candidate[batch.position][batch.step_of_candidate] + batch.candidate_index


def _read(path: Path, loader: BatchLoader) -> Tensor | None:
    if not path.exists():
        return None
    try:
        values = load_tensors(path, mmap=True)["log_probs"]
        if values.shape == (loader.num_candidates,) and values.dtype == torch.float16:
            return values
        logger.warning(f"{path}: holds something else than the teacher's log-probabilities; it is computed again")
    except (UserError, KeyError, TypeError, AttributeError) as error:
        logger.warning(f"{path}: cannot be used ({error}); it is computed again")
    return None


def _compute(reader: TeacherReader, loader: BatchLoader, parts: Path) -> Tensor:
    values = torch.empty(loader.num_candidates, dtype=torch.float16)
    first_candidate = loader.first_candidate.to(loader.device)
    with progress(None, "scoring with the teacher", loader.num_trips, "trips") as bar:
        for first in range(0, loader.num_trips, TRIPS_PER_PART):
            trips = np.arange(first, min(first + TRIPS_PER_PART, loader.num_trips))
            begin, end = loader.candidate_range(first, first + len(trips))
            path = parts / f"{first:09d}.pt"
            part = _read_part(path, end - begin)
            if part is None:
                part = torch.empty(end - begin, dtype=torch.float16)
                for start in range(0, len(trips), TRIPS_PER_BATCH):
                    take_signals()
                    batch = loader.batch(trips[start : start + TRIPS_PER_BATCH])
                    places = _places(first_candidate, batch).cpu() - begin
                    part[places] = reader.log_probs(batch).cpu().half()
                save_tensors(part, path)
            values[begin:end] = part
            bar.update(len(trips))
    return values


def _read_part(path: Path, size: int) -> Tensor | None:
    if not path.exists():
        return None
    try:
        part = load_tensors(path)
    except UserError:
        return None
    return part if isinstance(part, Tensor) and part.shape == (size,) else None
