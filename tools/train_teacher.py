"""Train an LM-TAD teacher on the trips of a data set. Running the same command again resumes.

uv run python tools/train_teacher.py --dataset Demo --seed 42 --cuda 0

Writes the weights that train_with_distill.py reads: distill.teacher of the configuration, by default
save/{dataset}/teacher/weights.pt. The best epoch by validation perplexity is kept.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loguru import logger

from utils.command_line import (
    ONE_READER,
    Kept,
    add_data_arguments,
    add_device_argument,
    add_seed_argument,
    run_command_line,
    warn_of_unread,
)
from utils.config import Config, config_source, load_config
from utils.data.dataset import find_folder, load_city
from utils.distillation.grid import describe_grid, make_grid, warn_of_stretched_grid
from utils.distillation.kl_loss import teacher_path
from utils.distillation.teacher_checkpoint import TeacherCheckpoint
from utils.distillation.teacher_training import (
    TokenTrips,
    make_teacher,
    perplexity,
    train_teacher_epoch,
    uniform_perplexity,
)
from utils.files.tensor_files import size_bytes
from utils.runtime.device import choose_device, set_seed
from utils.runtime.memory import SMALLER_TEACHER_BATCHES, memory_advice
from utils.runtime.precision import Precision
from utils.runtime.signals import held_signals
from utils.tracking.run import Run, open_run
from utils.training.engine import make_optimizer
from utils.training.schedule import Schedule

kept = Kept("no epoch was finished by this command; run it again")
EPOCHS_KEPT = "the epochs done so far are kept; run the same command again to resume"
ONLY_THE_STUDENT = "only the training of the student reads it"
UNREAD = {
    **{name: reason for name, reason in ONE_READER.items() if name != "teacher"},
    **dict.fromkeys(("optimizer_config", "training.compile", "navigator_config"), ONLY_THE_STUDENT),
    **{f"distill.{name}": ONLY_THE_STUDENT for name in ("enable", "window", "lambda", "temperature", "steps", "cache")},
}


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, example="teacher.max_epoch=2")
    add_seed_argument(parser)
    add_device_argument(parser)
    args = parser.parse_args()
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, args.overrides)
    with open_run(args.dataset, "teacher") as run:
        logger.info(f"configuration: {config_source(args.dataset, args.config, args.overrides)}")
        warn_of_unread(args.overrides, UNREAD)
        train(args, config, run)


def train(args: argparse.Namespace, config: Config, run: Run) -> None:
    """Data, model, checkpoint, epochs."""
    device = choose_device(args.cuda)
    settings, distill = config.teacher, config.distill
    city = load_city(args.dataset, config, args.data_dir)
    grid = make_grid(city.network, distill.grid_size, distill.downsample)
    logger.info(describe_grid(grid))
    warn_of_stretched_grid(grid)
    trips = {split: city.trips(split) for split in ("train", "val")}
    tokens = {
        split: TokenTrips(trips[split], grid, settings.block_size, settings.batch_size, device) for split in trips
    }
    num_batches = tokens["train"].num_batches

    set_seed(args.seed)
    model = make_teacher(settings, grid, device)
    optimizer = make_optimizer(model, settings)
    total_steps = settings.max_epoch * num_batches
    schedule = Schedule(settings.learning_rate, total_steps, total_steps * settings.warmup_ratio)
    precision = Precision(config.training.precision, device)
    logger.info(f"LM-TAD with {sum(p.numel() for p in model.parameters()):,} parameters on {device}")

    weights = teacher_path(distill, args.dataset)
    identity = {
        "dataset": args.dataset,
        "seed": args.seed,
        "grid": [grid.rows, grid.columns],
        "data": tokens["train"].data_key,
        **{key: getattr(settings, key) for key in ("n_layer", "n_head", "n_embd", "block_size")},
    }
    inputs = {"validation data": tokens["val"].data_key, "precision": precision.name}
    checkpoint = TeacherCheckpoint(run.save, weights, identity, dataclasses.asdict(settings), inputs)
    checkpoint.restore(model, optimizer, precision)
    checkpoint.warn_of_a_full_disk(size_bytes(model))
    first_epoch = len(checkpoint.perplexities)
    if first_epoch:
        kept.text = EPOCHS_KEPT
    run.open_curves(checkpoint.batches_done, epochs=first_epoch)
    run.write_config(config)
    with held_signals(), memory_advice(SMALLER_TEACHER_BATCHES):
        for epoch in range(first_epoch, settings.max_epoch):
            began, first_batch = time.monotonic(), checkpoint.batches_done
            records = train_teacher_epoch(
                model, tokens["train"], optimizer, schedule, precision, settings.max_norm, args.seed, epoch, first_batch
            )
            for some in records:
                run.log_scalars("teacher_loss", some)
            value = perplexity(model, tokens["val"], precision)
            run.log_scalars("val_perplexity", [(epoch + 1, value)])
            checkpoint.save(model, optimizer, precision, value, first_batch + num_batches)
            kept.text = EPOCHS_KEPT
            logger.info(
                f"teacher epoch {epoch + 1}/{settings.max_epoch}: val_perplexity {value:.4f}, "
                f"{time.monotonic() - began:.1f} s"
            )
    log_result(checkpoint, uniform_perplexity(trips["val"], city.network, grid, settings.block_size))


def log_result(checkpoint: TeacherCheckpoint, uniform: float) -> None:
    """The best epoch, and what its perplexity means beside that of a uniform guess."""
    best = min(checkpoint.perplexities)
    logger.info(f"best epoch {checkpoint.best_epoch}, val_perplexity {best:.4f}: {checkpoint.weights}")
    logger.info(
        f"perplexity {best:.2f} over all cells: it hesitates as between this many; a uniform guess over each road's "
        f"successors, which knows the road network only, has {uniform:.2f}"
    )
    if best >= uniform:
        logger.warning(
            "over all cells this teacher is no better than that guess; "
            "train_with_distill.py says what it is worth over the candidates"
        )
        logger.warning(
            "what may help: training it longer (teacher.max_epoch) or on more trips, a smaller teacher "
            "(teacher.n_layer, teacher.n_embd), larger cells (distill.grid_size)"
        )


if __name__ == "__main__":
    run_command_line(main, kept=kept)
