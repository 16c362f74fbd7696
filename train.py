"""Train HOSER on a data set. Every epoch is kept; best.pth is a copy of the one that validates best.

    uv run python train.py --dataset Beijing --seed 42 --cuda 0

Vanilla training does not resume: running it again starts from scratch.
"""

import argparse
import time

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
    return parser.parse_args()


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

import torch
from loguru import logger

from models.hoser import HOSER
from utils.config import Config, config_source, load_config
from utils.data.dataset import find_folder, load_city
from utils.data.loader import data_keys, make_loaders
from utils.files.checksums import content_digest
from utils.files.tensor_files import size_bytes
from utils.runtime.device import choose_device, set_seed
from utils.runtime.distributed import join_processes
from utils.runtime.memory import SMALLER_BATCHES, memory_advice
from utils.runtime.signals import held_signals
from utils.tracking.run import Run, log_data, log_summary, open_run
from utils.training.compile import compile_model
from utils.training.engine import Learner, evaluate, train_epoch
from utils.training.epoch_checkpoints import EpochCheckpoints
from utils.training.heuristics import measure_heuristics
from utils.training.losses import HOSERLoss
from utils.training.metrics import Metrics
from utils.training.weights import load_model

UNREAD = {
    **ONE_READER,
    "distill": "vanilla training has no teacher",
    "wandb": "vanilla training is not tracked by W&B",
}
kept = Kept("no epoch was finished")


def main() -> None:
    args, processes = parse_arguments(), join_processes()
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, args.overrides)
    device = choose_device(args.cuda, processes, varied_shapes=True)
    with open_run(args.dataset, f"seed{args.seed}", processes) as run:
        logger.info(f"configuration: {config_source(args.dataset, args.config, args.overrides)}")
        warn_of_unread(args.overrides, UNREAD, *["wandb.enable"] * config.wandb.enable)
        train(args, config, device, run)


def train(args: argparse.Namespace, config: Config, device: torch.device, run: Run) -> None:
    """The whole run: data, model, epochs, test."""
    # data
    processes = run.processes
    with processes.main_process_first():
        city = load_city(args.dataset, config, args.data_dir)
        loaders = make_loaders(city, config, device, processes)
    processes.check_same("data", lambda: content_digest([data_keys(loaders), vars(city.features)]))
    log_data(city, loaders, measure_heuristics(loaders["val"]))

    # model
    set_seed(args.seed)
    model = HOSER(config, city.features).to(device)
    learner = Learner.from_config(model, config, loaders["train"])
    loss_function = HOSERLoss(loaders["train"].statistics)
    if config.training.compile:
        compile_model(model, loaders["train"], learner.precision)

    # epochs
    checkpoints = EpochCheckpoints(run.save, writes=processes.is_main)
    checkpoints.announce(config.optimizer_config.max_epoch, size_bytes(model))
    run.open_curves()  # only when all that the run needs is in order: an earlier run's curves are moved aside
    run.write_config(config)
    validations: list[Metrics] = []
    seconds: list[float] = []
    with held_signals(), memory_advice(SMALLER_BATCHES):
        for epoch_id in range(config.optimizer_config.max_epoch):
            began = time.monotonic()
            first_batch = epoch_id * loaders["train"].num_batches
            for records in train_epoch(learner, loaders["train"], loss_function, args.seed, epoch_id, first_batch):
                run.log_batches(records)
            validations.append(evaluate(model, loaders["val"], learner.precision, f"validating, epoch {epoch_id + 1}"))
            checkpoints.save(model, validations[-1].next_step_acc)
            kept.text = "the epochs saved so far stay; running again starts from scratch"
            seconds.append(time.monotonic() - began)
            run.log_epoch(epoch_id + 1, config.optimizer_config.max_epoch, validations[-1], seconds[-1])

    # test, with the epoch that validates best
    best_epoch = checkpoints.best_epoch
    processes.barrier()
    logger.info(f"loading epoch_{best_epoch}.pth")
    load_model(model, checkpoints.best_path)
    with memory_advice(SMALLER_BATCHES):
        test = evaluate(model, loaders["test"], learner.precision, "testing")
    log_summary(best_epoch, validations[best_epoch - 1], test, checkpoints.best_path, seconds)


if __name__ == "__main__":
    run_command_line(main, kept=kept)
