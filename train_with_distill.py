"""Train HOSER with knowledge distilled from LM-TAD. Running the same command again resumes an interrupted run.

    uv run python train_with_distill.py --dataset Beijing --seed 42 --cuda 0

One rolling checkpoint (checkpoint_latest.pth) and the best model (best.pth) are kept.
"""

import argparse
import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.command_line import (
    ONE_READER,
    Kept,
    add_data_arguments,
    add_device_argument,
    add_seed_argument,
    answer_before_imports,
    run_command_line,
    warn_of_unread,
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    add_seed_argument(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--no-distill", action="store_true", help="train without a teacher, with this script's checkpoints and resume"
    )
    parser.add_argument(
        "--run_name",
        type=_run_name,
        metavar="NAME",
        help="folder of the run below save/DATASET and so on (default: seed{N}_distill, or seed{N}_nodistill)",
    )
    return parser.parse_args()


def _run_name(text: str) -> str:
    if re.fullmatch(r"seed\d+|teacher", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, the folder of another script; expected another name")
    return text


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

import torch
from loguru import logger

from models.hoser import HOSER
from utils.config import Config, config_source, config_to_dict, flatten, load_config
from utils.config_sections import DistillConfig
from utils.data.dataset import City, find_folder, load_city
from utils.data.loader import BatchLoader, data_keys, make_loaders
from utils.distillation.kl_loss import (
    TeacherMetrics,
    check_teacher,
    introduce_teacher,
    judge_teacher,
    load_distillation,
    teacher_path,
)
from utils.errors import UserError
from utils.files.checksums import content_digest, file_digest
from utils.files.tensor_files import size_bytes
from utils.runtime.device import choose_device, set_seed
from utils.runtime.distributed import join_processes
from utils.runtime.memory import SMALLER_BATCHES, SMALLER_WINDOW, memory_advice
from utils.runtime.signals import held_signals
from utils.search.reporter import TrialReporter
from utils.tracking.run import Run, log_data, log_summary, open_run
from utils.training.compile import compile_model
from utils.training.engine import Learner, evaluate, train_epoch
from utils.training.heuristics import measure_heuristics
from utils.training.losses import HOSERLoss
from utils.training.metrics import Metrics
from utils.training.rolling_checkpoint import Identity, RollingCheckpoint
from utils.training.weights import load_model

if TYPE_CHECKING:
    import optuna


kept = Kept("no epoch was finished by this command; run it again")
EPOCHS_KEPT = "the epochs done so far are kept; run the same command again to resume"


@dataclass(frozen=True)
class Result:
    """What `main` returns."""

    best_epoch: int  # from 1
    best: Metrics  # validation metrics of that epoch
    test: Metrics  # of the best model
    validations: list[Metrics]  # of all epochs
    best_path: Path

    @property
    def final(self) -> Metrics:
        """Validation metrics of the last epoch."""
        return self.validations[-1]


def main(
    dataset: str,
    seed: int = 0,
    cuda: int = 0,
    config_overrides: Mapping[str, Any] | Sequence[str] | None = None,
    run_name: str | None = None,
    optuna_trial: "optuna.Trial | None" = None,
    *,
    data_dir: str | None = None,
    config_path: str | None = None,
    distill: bool | None = None,
) -> Result:
    """Train one run, or resume it.

    Args:
        dataset: name of the data set.
        seed: random seed.
        cuda: GPU number; -1 for the CPU.
        config_overrides: `section.key` -> value (or nested sections), or `section.key=value` texts.
        run_name: folder below save/{dataset}/ and so on; by default seed{seed}_distill, or seed{seed}_nodistill.
        optuna_trial: reports each epoch to this trial, which may prune the run.
        data_dir: folder of the data set, by default data/{dataset}.
        config_path: configuration file, by default config/{dataset}.yaml.
        distill: overrides `distill.enable`.

    Raises:
        UserError: a mistake of the user's.
        optuna.TrialPruned: the trial says so; its checkpoint is complete.
    """
    processes = join_processes()
    if optuna_trial is not None and processes.world_size > 1:
        raise UserError("a trial of a search cannot be trained by torchrun; start the search several times instead")
    find_folder(dataset, data_dir)
    config = load_config(dataset, config_path, config_overrides or ())
    if distill is not None:
        config = dataclasses.replace(config, distill=dataclasses.replace(config.distill, enable=distill))
    device = choose_device(cuda, processes, varied_shapes=True)
    mode = "distill" if config.distill.enable else "nodistill"
    with open_run(dataset, run_name or f"seed{seed}_{mode}", processes) as run:
        logger.info(f"configuration: {config_source(dataset, config_path, config_overrides or ())}")
        if not isinstance(config_overrides, Mapping | None):
            warn_of_unread(config_overrides, unread_keys(config))
        return train(dataset, seed, config, data_dir, device, run, TrialReporter(optuna_trial))


def unread_keys(config: Config) -> dict[str, str]:
    """Keys and sections that have no effect with this configuration, and why."""
    unread = {name: reason for name, reason in ONE_READER.items() if name != "wandb"}
    for section, reason in (("distill", "distill.enable is false"), ("wandb", "wandb.enable is false")):
        names = flatten(config_to_dict(config)[section])
        if not names.pop("enable"):
            unread |= {f"{section}.{name}": reason for name in names}
    return unread


def train(
    dataset: str,
    seed: int,
    config: Config,
    data_dir: str | None,
    device: torch.device,
    run: Run,
    reporter: TrialReporter,
) -> Result:
    """The whole run: checkpoint, data, teacher, model, epochs, test."""
    # what an interrupted run left
    processes = run.processes
    identity = Identity(seed, dataset, config.distill.enable)
    checkpoint = RollingCheckpoint(run.save, identity, config_to_dict(config), writes=processes.is_main)
    learns_from_teacher = config.distill.enable and checkpoint.epochs_found < config.optimizer_config.max_epoch
    if learns_from_teacher:
        check_teacher(config.distill, dataset)

    # data and teacher
    with processes.main_process_first():
        city = load_city(dataset, config, data_dir)
        loaders = make_loaders(city, config, device, processes)
    keys = data_keys(loaders)
    log_data(city, loaders, measure_heuristics(loaders["val"]))
    loss_function = HOSERLoss(loaders["train"].statistics)
    if config.distill.enable:
        keys["teacher"] = file_digest(teacher_path(config.distill, dataset))
    teacher_metrics = None
    if learns_from_teacher:
        loss_function, teacher_metrics = add_teacher(loss_function, config.distill, dataset, city, loaders)
    processes.check_same("data and teacher", lambda: content_digest([keys, vars(city.features)]))

    # model
    set_seed(seed)
    model = HOSER(config, city.features).to(device)
    learner = Learner.from_config(model, config, loaders["train"])
    with processes.main_process_first():
        checkpoint.restore(learner, keys)
    checkpoint.warn_of_a_full_disk(size_bytes(model))
    processes.check_same("checkpoint_latest.pth", lambda: content_digest(checkpoint.validations))
    if config.training.compile:
        compile_model(model, loaders["train"], learner.precision)

    # curves and W&B run
    run.open_curves(checkpoint.batches_done, checkpoint.epochs_done)
    if checkpoint.epochs_done < config.optimizer_config.max_epoch:  # else the file is that of what was trained
        run.write_config(config)
    if config.wandb.enable and processes.is_main:
        run.start_wandb(config, dataset, seed, checkpoint.claim_wandb_run_id(), size_bytes(model))

    # epochs, and a test of the one that validates best
    seconds = train_epochs(learner, loaders, loss_function, seed, checkpoint, run, reporter)
    result = evaluate_best(learner, loaders, checkpoint, run)
    log_summary(checkpoint.best_epoch, result.best, result.test, checkpoint.best_path, seconds)
    judge_teacher(teacher_metrics, checkpoint.best_val_acc)
    return result


def add_teacher(
    loss_function: HOSERLoss, config: DistillConfig, dataset: str, city: City, loaders: dict[str, BatchLoader]
) -> tuple[HOSERLoss, TeacherMetrics | None]:
    """The loss with its KL term, and how good the teacher is on val."""
    with memory_advice(SMALLER_WINDOW):
        with loaders["train"].processes.main_process_first():
            distillation = load_distillation(config, dataset, city, loaders)
        metrics = introduce_teacher(distillation, loaders, config)
    return dataclasses.replace(loss_function, kl=distillation.term, kl_weight=config.lambda_), metrics


@held_signals()
@memory_advice(SMALLER_BATCHES)
def train_epochs(
    learner: Learner,
    loaders: dict[str, BatchLoader],
    loss_function: HOSERLoss,
    seed: int,
    checkpoint: RollingCheckpoint,
    run: Run,
    reporter: TrialReporter,
) -> list[float]:
    """Train the epochs that the checkpoint has not; returns the seconds that each took."""
    first_epoch, max_epoch = checkpoint.epochs_done, learner.config.max_epoch
    if first_epoch:
        kept.text = EPOCHS_KEPT
    if first_epoch >= max_epoch:
        more = f", more than optimizer_config.max_epoch = {max_epoch}" if first_epoch > max_epoch else ""
        logger.info(f"training is complete: all {first_epoch} epochs are done{more}")
    reporter.catch_up(checkpoint.validations, epochs_left=first_epoch < max_epoch)

    seconds: list[float] = []
    for epoch_id in range(first_epoch, max_epoch):
        began = time.monotonic()
        first_batch = checkpoint.batches_done
        for records in train_epoch(learner, loaders["train"], loss_function, seed, epoch_id, first_batch):
            run.log_batches(records)
        metrics = evaluate(learner.model, loaders["val"], learner.precision, f"validating, epoch {epoch_id + 1}")
        seconds.append(time.monotonic() - began)
        # The curves first: what a checkpoint counts as done is in them.
        run.log_epoch(epoch_id + 1, max_epoch, metrics, seconds[-1])
        checkpoint.save(learner, metrics, first_batch + loaders["train"].num_batches)
        run.epoch_saved()
        kept.text = EPOCHS_KEPT
        reporter.report(metrics.next_step_acc, epoch_id)
    return seconds


def evaluate_best(learner: Learner, loaders: dict[str, BatchLoader], checkpoint: RollingCheckpoint, run: Run) -> Result:
    """Test the epoch that validates best, and log the result."""
    run.processes.barrier()
    load_model(learner.model, checkpoint.best_path)
    with memory_advice(SMALLER_BATCHES):
        test = evaluate(learner.model, loaders["test"], learner.precision, "testing")
    best = checkpoint.validations[checkpoint.best_epoch - 1]
    run.log_result(checkpoint.best_epoch, checkpoint.epochs_done, best, test, checkpoint.best_path)
    return Result(checkpoint.best_epoch, best, test, checkpoint.validations, checkpoint.best_path)


def command_line() -> None:
    args = parse_arguments()
    main(
        args.dataset,
        args.seed,
        args.cuda,
        args.overrides,
        data_dir=args.data_dir,
        run_name=args.run_name,
        config_path=args.config,
        distill=False if args.no_distill else None,
    )


if __name__ == "__main__":
    run_command_line(command_line, kept=kept)
