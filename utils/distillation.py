"""Distillation from LM-TAD into HOSER: the KL term of the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from models.inputs import Batch, Prediction
from utils.city import City
from utils.config import display_path
from utils.config_sections import DistillConfig
from utils.data_cache import cache_folder
from utils.errors import UserError
from utils.grid import describe_grid, make_grid
from utils.loader import BatchLoader
from utils.objective import pad_candidates
from utils.processes import ALONE, Processes
from utils.teacher import TeacherReader, tokens_of_roads
from utils.teacher_cache import cache_key, cached_log_probs
from utils.teacher_file import load_teacher


@dataclass(frozen=True)
class DistillationTerm:
    """KL(teacher || student) over the candidates of each step, both softened by one temperature."""

    log_probs: Callable[[Batch], Tensor]  # the teacher's, [K]; from a reader or from a cache
    temperature: float
    last_step_only: bool
    processes: Processes = ALONE

    def __call__(self, prediction: Prediction, batch: Batch) -> Tensor:
        """Mean KL over the steps with something to learn: two candidates or more, all known to the teacher."""
        target = pad_candidates(self.log_probs(batch) / self.temperature, batch).log_softmax(dim=1)
        student = pad_candidates(prediction.logits.float() / self.temperature, batch)
        student = F.log_softmax(student, dim=1)
        counts = (batch.candidate_len > 1) & ~target.isnan().any(1)
        if not batch.share:
            counts = torch.zeros_like(counts)
        if self.last_step_only:
            last = torch.zeros_like(counts)
            last[batch.trip_len.cumsum(0) - 1] = True
            counts = counts & last
        # What is left out is replaced before the product: the gradient of a product with NaN or an infinity is NaN.
        used = target.isfinite() & counts.unsqueeze(1)
        target, student = (torch.where(used, values, 0.0) for values in (target, student))
        total = (used * target.exp() * (target - student)).sum()
        return total / self.processes.sum(counts.sum()).clamp(min=1)


def teacher_path(config: DistillConfig, dataset: str) -> Path:
    """Where the teacher of a data set lies."""
    return Path(config.teacher) if config.teacher else Path("save") / dataset / "teacher" / "weights.pt"


def check_teacher(config: DistillConfig, dataset: str) -> None:
    """Refuse a run whose teacher file is missing, before any data is loaded.

    Raises:
        UserError: says how to get one.
    """
    path = teacher_path(config, dataset)
    if not path.is_file():
        raise UserError(
            f"{display_path(path)}: no teacher (distill.enable is true); make one with "
            f"`uv run python tools/train_teacher.py --dataset {dataset} --seed 42 --cuda 0`, name another file with "
            "--set distill.teacher=FILE, or train without one with --no-distill"
        )


def load_distillation(config: DistillConfig, dataset: str, city: City, train: BatchLoader) -> DistillationTerm:
    """The KL term of a configuration; the teacher is asked now (or was before), or at each batch."""
    reader, token_of_road = load_teacher_reader(config, dataset, city, train.device)
    log_probs: Callable[[Batch], Tensor] = reader.log_probs
    if config.cache:
        key = cache_key(teacher_path(config, dataset), train, token_of_road, config.window)
        log_probs = cached_log_probs(reader, train, cache_folder(city.folder), key)
    return DistillationTerm(log_probs, config.temperature, config.steps == "last", train.processes)


def load_teacher_reader(
    config: DistillConfig, dataset: str, city: City, device: torch.device
) -> tuple[TeacherReader, Tensor]:
    """The teacher on `device`, and the token of each road [N] int64 (-1: none).

    Raises:
        UserError: the teacher cannot be read, or does not fit the city or the window.
    """
    path = teacher_path(config, dataset)
    teacher = load_teacher(path)
    block_size = teacher.model.config.block_size
    if config.window > block_size:
        raise UserError(
            f"distill.window: found {config.window}, expected at most {block_size} (block_size of {display_path(path)})"
        )
    grid = make_grid(city.network, config.grid_size, config.downsample)
    token_of_road = tokens_of_roads(teacher, grid, path)
    known = (token_of_road >= 0).float().mean().item()
    logger.info(f"{describe_grid(grid)}; {known:.1%} of the roads lie in cells that the teacher knows")
    teacher.model.to(device)
    if known == 0:
        raise UserError(
            f"{display_path(path)}: knows no cell that a road of this city lies in; another city's teacher?"
        )
    if known < 0.5:
        logger.warning("steps that involve a cell unknown to the teacher are left out of loss_kl")
    return TeacherReader(teacher, token_of_road.to(device), config.window), token_of_road
