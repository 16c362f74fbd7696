"""Distillation from LM-TAD into HOSER: the KL term of the loss."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from models.batch import Batch, Prediction
from models.thread_count import one_thread
from utils.config_sections import DistillConfig
from utils.data.cache import cache_folder
from utils.data.dataset import City
from utils.data.loader import BatchLoader
from utils.distillation.score_cache import cache_key, cached_log_probs
from utils.distillation.teacher_file import load_teacher
from utils.distillation.teacher_scores import TeacherReader, tokens_of_roads
from utils.distillation.tokens import make_tokens
from utils.errors import UserError
from utils.runtime.cores import on_free_cores
from utils.runtime.distributed import ALONE, Processes
from utils.runtime.progress import progress
from utils.runtime.signals import take_signals
from utils.training.metrics import pad_candidates, rank_of_label

MAX_PERPLEXITY = 1e300


@dataclass(frozen=True)
class DistillationTerm:
    """KL(teacher || student) over the candidates of each step, both softened by one temperature.

    There is no factor of temperature^2 as in Hinton et al. (2015), so a higher temperature also makes the gradients of
    the term smaller: lambda and temperature interact, and are searched together.
    """

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
        with one_thread():  # a sum over many candidates
            total = (used * target.exp() * (target - student)).sum()
        return total / self.processes.all_reduce(counts.sum()).clamp(min=1)


def teacher_path(config: DistillConfig, dataset: str) -> Path:
    """Where the teacher of a data set lies."""
    return Path(config.teacher) if config.teacher else Path("save") / dataset / "teacher" / "weights.pt"


def check_teacher(config: DistillConfig, dataset: str) -> None:
    """Refuse a run whose teacher file is missing, before any data is loaded.

    Raises:
        UserError: says how to get one.
    """
    path = teacher_path(config, dataset)
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file (distill.teacher)")
    made = f"`uv run python tools/train_teacher.py --dataset {dataset} --seed 42 --cuda 0`"
    if config.teacher:
        raise UserError(
            f"{path}: no teacher; correct distill.teacher, leave it out (then it is the file that {made} makes), or "
            "train without one with --no-distill"
        )
    raise UserError(
        f"{path}: no teacher (distill.enable is true); make one with {made}, name another file with "
        "--set distill.teacher=FILE, or train without one with --no-distill"
    )


@dataclass(frozen=True)
class Distillation:
    """What a teacher gives to a training."""

    term: DistillationTerm  # of the loss
    val_log_probs: Callable[[Batch], Tensor]  # the teacher's, on the validation split, [K]
    token_of_road: Tensor  # [N] int64


def load_distillation(
    config: DistillConfig, dataset: str, city: City, loaders: Mapping[str, BatchLoader]
) -> Distillation:
    """The KL term of a configuration; the teacher is asked now (or was before), or at each batch."""
    train, folder = loaders["train"], cache_folder(city.folder)
    reader, token_of_road = load_teacher_reader(config, dataset, city, train.device)

    def rounded(batch: Batch) -> Tensor:  # as a cache keeps them
        return reader.log_probs(batch).half().float()

    answers: dict[str, Callable[[Batch], Tensor]] = dict.fromkeys(("train", "val"), rounded)
    if config.cache:
        path = teacher_path(config, dataset)
        for split in answers:
            key = cache_key(path, loaders[split], token_of_road, config.window)
            answers[split] = cached_log_probs(reader, loaders[split], folder, key)
    term = DistillationTerm(answers["train"], config.temperature, config.steps == "last", train.processes)
    return Distillation(term, answers["val"], reader.token_of_road)


@dataclass(frozen=True)
class TeacherMetrics:
    """How well a teacher predicts the next road, on the steps whose tokens it knows."""

    known_share: float  # of all steps
    tied_share: float  # of the known steps: candidates share a token, so the teacher cannot rank them
    accuracy: float
    uniform_accuracy: float  # of a guess that takes all candidates for equally likely
    perplexity: float  # exp of the mean of -log q(road that was taken); infinite where it calls one impossible
    uniform_perplexity: float


@torch.no_grad()
def measure_teacher(
    log_probs: Callable[[Batch], Tensor], token_of_road: Tensor, loader: BatchLoader
) -> TeacherMetrics | None:
    """Metrics of the teacher on a split; None if it knows no step of it.

    Args:
        log_probs: the teacher's, of the candidates [K] of a batch.
        token_of_road: [N] int64.
        loader: the split.
    """
    totals = torch.zeros(7, dtype=torch.float64, device=loader.device)
    for batch in progress(
        on_free_cores(loader.in_order(), loader.device), "scoring val with the teacher", loader.num_batches, "batches"
    ):
        take_signals()
        if not batch.share:
            continue
        answer = log_probs(batch)
        taken = answer.index_select(0, batch.label_candidate)
        known = ~taken.isnan()
        candidates = batch.candidate_len[known].double()
        tokens = torch.stack([batch.step_of_candidate, token_of_road[batch.candidate_road_id]]).unique(dim=1)
        tied = torch.bincount(tokens[0], minlength=len(taken)) < batch.candidate_len
        sums = [
            known.sum(),
            (tied & known).sum(),
            ((rank_of_label(answer, batch) == 0) & known).sum(),
            (1.0 / candidates).sum(),
        ]
        sums += [-taken[known].double().sum(), candidates.log().sum()]
        totals += torch.stack([torch.full_like(sums[-1], len(taken)), *(value.double() for value in sums)])
    steps, known, *sums = loader.processes.all_reduce(totals).tolist()
    if not known:
        return None
    tied, right, uniform_right, surprise, uniform_surprise = (value / known for value in sums)
    perplexity = math.exp(surprise) if surprise < math.log(MAX_PERPLEXITY) else math.inf
    return TeacherMetrics(known / steps, tied, right, uniform_right, perplexity, math.exp(uniform_surprise))


def introduce_teacher(
    distillation: Distillation, loaders: Mapping[str, BatchLoader], config: DistillConfig
) -> TeacherMetrics | None:
    """Say what the teacher is worth on the validation split, and which settings of distillation have no effect.

    Its answers on val are kept beside those on train, so this costs a pass over val once (and at each start where
    `distill.cache` is off).
    """
    val = loaders["val"]
    metrics = measure_teacher(distillation.val_log_probs, distillation.token_of_road, val)
    if metrics is None:
        logger.warning("the teacher knows no step of val: nothing can be said of it")
    else:
        logger.info(
            f"the teacher, on val ({val.num_trips:,} trips): next-road accuracy {metrics.accuracy:.4f} (a uniform "
            f"guess: {metrics.uniform_accuracy:.4f}), perplexity {metrics.perplexity:.4g} candidates (a uniform "
            f"guess: {metrics.uniform_perplexity:.4g})"
        )
        logger.info(
            f"it knows the tokens of {metrics.known_share:.1%} of the steps; at {metrics.tied_share:.1%} of them "
            "candidates share a token, and it cannot rank those"
        )
        if metrics.accuracy <= metrics.uniform_accuracy:
            logger.warning("this teacher knows no more of the next road than a uniform guess: it cannot help")
        elif metrics.perplexity >= metrics.uniform_perplexity:
            logger.warning(
                "this teacher is often right, but so sure where it is wrong that its perplexity is no better than that "
                "of a uniform guess; a higher distill.temperature softens it"
            )
    _warn_of_no_effect(loaders["train"], config)
    return metrics


def _warn_of_no_effect(train: BatchLoader, config: DistillConfig) -> None:
    last_only = config.steps == "last"
    if config.lambda_ == 0:
        logger.warning("distill.lambda is 0: the teacher has no effect")
    elif not train.steps_with_choice(last_only):
        logger.warning(
            f"the teacher has no effect: no {'last ' * last_only}step of train.csv has two candidates or more"
        )
    elif last_only and train.has_one_step_trips_only:
        logger.warning("distill.steps=last has no effect: the trips of train.csv have one step each")


def judge_teacher(metrics: TeacherMetrics | None, best_val_acc: float) -> None:
    """Say at the end if the student is better than the teacher that it learned from.

    Args:
        metrics: the teacher's on val; None if it knows no step of it.
        best_val_acc: the student's best accuracy on val.
    """
    if metrics is not None and metrics.accuracy < best_val_acc:
        logger.warning(
            f"this teacher could not help: its next-road accuracy on val, {metrics.accuracy:.4f}, is below the "
            f"student's best, {best_val_acc:.4f} (teacher.destination, teacher.tokens and --trips of "
            "tools/train_teacher.py make teachers that know more)"
        )


def load_teacher_reader(
    config: DistillConfig, dataset: str, city: City, device: torch.device
) -> tuple[TeacherReader, Tensor]:
    """The teacher on `device`, and the token of each road [N] int64 (-1: none).

    Raises:
        UserError: the teacher cannot be read, or does not fit the city or the window.
    """
    path = teacher_path(config, dataset)
    teacher = load_teacher(path)
    logger.info(f"teacher: {path}; {teacher.describe()}")
    if config.window > teacher.longest_window:
        limit = teacher.describe_window(path)
        raise UserError(f"distill.window: found {config.window}, expected at most {limit}")
    tokens = make_tokens(teacher.tokens, city.network, config)
    token_of_road = tokens_of_roads(teacher, tokens, city.network, path)
    known = (token_of_road >= 0).float().mean().item()
    known_roads = f"; {known:.1%} of the roads lie in cells that the teacher knows" if tokens.grid else ""
    logger.info(f"{tokens.describe()}{known_roads}")
    teacher.model.to(device)
    if known == 0:
        raise UserError(f"{path}: knows no cell that a road of this city lies in; another city's teacher?")
    if known < 0.5:
        logger.warning("steps that involve a cell unknown to the teacher are left out of loss_kl")
    return TeacherReader(teacher, token_of_road.to(device), config.window), token_of_road
