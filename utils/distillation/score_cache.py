"""The teacher's log-probabilities of all candidates of a split, computed once and kept on disk.

A frozen teacher always says the same of the same data, so an epoch of distillation need not ask it again.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from models.batch import Batch
from models.ragged import ragged_arange
from utils.data.loader import BatchLoader
from utils.distillation.split_windows import SplitWindows, find_windows
from utils.distillation.teacher_scores import TeacherReader
from utils.errors import UserError
from utils.files.atomic import remove, remove_temporary_files
from utils.files.disk_space import warn_if_short
from utils.files.locks import folder_lock
from utils.files.tensor_files import load_tensors, save_tensors
from utils.runtime.cores import on_free_cores
from utils.runtime.progress import ProgressReport, progress
from utils.runtime.signals import take_signals

VERSION = 1  # raise it when the content of the cache changes
BYTES = 2  # of a candidate
WINDOWS_PER_PART = 4096  # a part is what a kill may cost
STEPS_AT_ONCE = 2**18  # that are filled in; bounds the memory of their indices


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
    """The log-probabilities of all candidates [K] float16. Each distinct window is read once, for all of its steps."""
    teacher, tokens = reader.teacher, reader.token_of_road
    windows = find_windows(loader, tokens, reader.window, teacher.sot, teacher.destination)
    answers = torch.cat([torch.empty(0, dtype=torch.float16), *_read_windows(reader, loader, windows, parts)])

    values = torch.full((loader.num_candidates,), torch.nan, dtype=torch.float16)
    values[loader.first_candidate[windows.certain]] = 0.0  # the only candidate, which needs no teacher
    degree = np.diff(loader.tables.reach_ptr.cpu().numpy())[windows.question_road]
    first_answer = torch.from_numpy(np.cumsum(degree) - degree)
    for start in range(0, len(windows.asking), STEPS_AT_ONCE):
        position, question = (each[start : start + STEPS_AT_ONCE] for each in (windows.asking, windows.question))
        step, index = ragged_arange(torch.from_numpy(degree[question]))
        values[loader.first_candidate[position][step] + index] = answers[first_answer[question][step] + index]
    return values


def _read_windows(reader: TeacherReader, loader: BatchLoader, windows: SplitWindows, parts: Path) -> list[Tensor]:
    """The log-probabilities that answer all questions, by parts, from disk where they were finished before."""
    degree = np.diff(loader.tables.reach_ptr.cpu().numpy())[windows.question_road]
    ranges = [(i, min(i + WINDOWS_PER_PART, len(windows))) for i in range(0, len(windows), WINDOWS_PER_PART)]
    paths = [parts / f"windows-{first:09d}-{last:09d}.pt" for first, last in ranges]
    sizes = [int(degree[windows.questions(*each)].sum()) for each in ranges]
    answers = [_read_part(path, size) for path, size in zip(paths, sizes, strict=True)]
    costs = [int(windows.num_tokens[slice(*each)].sum()) for each in ranges]
    done = sum(cost for cost, part in zip(costs, answers, strict=True) if part is not None)
    total = sum(costs)
    logger.info(
        f"{len(windows.asking):,} steps with a choice have {len(windows):,} distinct windows"
        + (f"; {done / total:.0%} of that was read before" if done else "")
    )
    title, began = "scoring with the teacher", time.monotonic()
    report = ProgressReport(title, total, done)
    with progress(None, title, total, "tokens", done) as bar:
        for number, part in enumerate(answers):
            if part is None:
                answers[number] = _score_part(reader, loader, windows, ranges[number], bar)
                save_tensors(answers[number], paths[number])
                if bar.disable:
                    report.update(costs[number])
    logger.info(f"{title}: done in {time.monotonic() - began:.1f} s")
    return answers


def _score_part(
    reader: TeacherReader, loader: BatchLoader, windows: SplitWindows, part: tuple[int, int], bar: tqdm
) -> Tensor:
    """The log-probabilities that answer the questions about some windows, [K] float16."""
    answers = []
    for first, last in on_free_cores(windows.blocks(*part, reader.tokens_at_once), loader.device):
        take_signals()
        answers.append(score_windows(reader, loader, windows, first, last).cpu().half())
        bar.update(int(windows.num_tokens[first:last].sum()))
    return torch.cat(answers)


def score_windows(reader: TeacherReader, loader: BatchLoader, windows: SplitWindows, first: int, last: int) -> Tensor:
    """The log-probabilities that answer the questions about the windows [first, last), of equal length: [K] float32."""
    own = windows.questions(first, last)
    asked, road = torch.from_numpy(windows.question_window[own] - first), torch.from_numpy(windows.question_road[own])
    return reader.log_probs_after(windows.tokens(first, last), asked, road, loader.tables)


def _read_part(path: Path, size: int) -> Tensor | None:
    if not path.exists():
        return None
    try:
        part = load_tensors(path)
    except UserError:
        return None
    is_part = isinstance(part, Tensor) and part.shape == (size,) and part.dtype == torch.float16
    return part if is_part else None
