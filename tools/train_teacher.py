"""Train an LM-TAD teacher on the trips of a data set. Running the same command again resumes.

uv run python tools/train_teacher.py --dataset Demo --seed 42 --cuda 0

Writes the weights that train_with_distill.py reads: distill.teacher of the configuration, by default
save/{dataset}/teacher/weights.pt. The best epoch by validation perplexity is kept.

What helps a student is a teacher that knows more than it can learn itself:

uv run python tools/train_teacher.py --dataset Demo --seed 42 --cuda 0 --set teacher.tokens=roads \
    --set teacher.destination=true --trips more.csv
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
    add_data_arguments(parser, example="teacher.max_epoch=2")
    add_seed_argument(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--trips", type=Path, metavar="FILE", help="a CSV of trips to train on (default: train.csv of the data set)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

from loguru import logger

from utils.config import Config, config_source, load_config
from utils.config_sections import CELLS, ROADS
from utils.data.dataset import City, find_folder, load_city
from utils.data.overlap import count_shared
from utils.data.trips import Trips
from utils.distillation.kl_loss import teacher_path
from utils.distillation.teacher_checkpoint import TeacherCheckpoint
from utils.distillation.teacher_file import TrainingTrips
from utils.distillation.teacher_training import (
    TokenTrips,
    make_teacher,
    perplexity,
    train_teacher_epoch,
    uniform_perplexity,
)
from utils.distillation.tokens import NetworkKey, RoadTokens, make_tokens
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
    **dict.fromkeys(
        ("optimizer_config", "training.compile", "training.cuda_graph", "navigator_config"), ONLY_THE_STUDENT
    ),
    **{f"distill.{name}": ONLY_THE_STUDENT for name in ("enable", "window", "lambda", "temperature", "steps", "cache")},
}
IDENTITY = ("tokens", "destination", "n_layer", "n_head", "n_embd", "block_size")  # settings of another teacher
WITHOUT_GRID = dict.fromkeys(("distill.grid_size", "distill.downsample"), "teacher.tokens is roads")


def main() -> None:
    """Read the command line and train."""
    args = parse_arguments()
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, args.overrides)
    with open_run(args.dataset, "teacher") as run:
        logger.info(f"configuration: {config_source(args.dataset, args.config, args.overrides)}")
        warn_of_unread(args.overrides, UNREAD | (WITHOUT_GRID if config.teacher.tokens == ROADS else {}))
        train(args, config, run)


def train(args: argparse.Namespace, config: Config, run: Run) -> None:
    """Data, model, checkpoint, epochs."""
    device = choose_device(args.cuda, varied_shapes=True)
    settings, distill = config.teacher, config.distill
    city = load_city(args.dataset, config, args.data_dir)
    road_tokens = make_tokens(settings.tokens, city.network, distill)
    logger.info(road_tokens.describe())
    trips = {"train": read_training_trips(city, args.trips), "val": city.trips("val")}
    where = args.trips or city.folder / "train.csv"
    logger.info(f"{len(trips['train']):,} trips of {where}, validated with {len(trips['val']):,}")
    tokens = {
        split: TokenTrips(
            each, road_tokens, settings.block_size, settings.batch_size, device, destination=settings.destination
        )
        for split, each in trips.items()
    }
    num_batches = tokens["train"].num_batches

    set_seed(args.seed)
    model = make_teacher(settings, road_tokens, device)
    optimizer = make_optimizer(model, settings)
    total_steps = settings.max_epoch * num_batches
    schedule = Schedule(settings.learning_rate, total_steps, total_steps * settings.warmup_ratio)
    precision = Precision(config.training.precision, device)
    logger.info(f"LM-TAD with {sum(p.numel() for p in model.parameters()):,} parameters on {device}")

    checkpoint = make_checkpoint(args, config, run, city, road_tokens, tokens, precision)
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
            losses = train_teacher_epoch(
                model, tokens["train"], optimizer, schedule, precision, settings.max_norm, args.seed, epoch, first_batch
            )
            for some in losses:
                run.log_scalars("teacher_loss", some)
            value = perplexity(model, tokens["val"], precision)
            run.log_scalars("val_perplexity", [(epoch + 1, value)])
            checkpoint.save(model, optimizer, precision, value, first_batch + num_batches)
            kept.text = EPOCHS_KEPT
            logger.info(
                f"teacher epoch {epoch + 1}/{settings.max_epoch}: val_perplexity {value:.4f}, "
                f"{time.monotonic() - began:.1f} s"
            )
    uniform = uniform_perplexity(trips["val"], city.network, road_tokens, tokens["val"].longest)
    log_result(checkpoint, uniform, settings.tokens)


def read_training_trips(city: City, file: Path | None) -> Trips:
    """The trips of train.csv, or of another file, which should have none that teacher and student are judged by."""
    if file is None:
        return city.trips("train")
    trips = city.trips_of(file)
    for split, judged in (("val", "this teacher"), ("test", "a student of this teacher")):
        held_out = city.trips(split)
        if shared := count_shared(held_out, trips):
            logger.warning(
                f"{file} has {shared:,} of the {len(held_out):,} trips of {split}.csv: what {judged} is worth on them "
                "says nothing of other trips"
            )
    return trips


def short_name(file: Path) -> str:
    """File and folder, `Demo/train.csv`: not where somebody's data lie."""
    return str(Path(*file.parts[-2:]))


def make_checkpoint(
    args: argparse.Namespace,
    config: Config,
    run: Run,
    city: City,
    road_tokens: RoadTokens,
    tokens: dict[str, TokenTrips],
    precision: Precision,
) -> TeacherCheckpoint:
    """The rolling checkpoint, with what tells this training from another one, and what the teacher file will say."""
    settings, grid, train = config.teacher, road_tokens.grid, tokens["train"]
    identity = {
        "dataset": args.dataset,
        "seed": args.seed,
        **({"grid": [grid.rows, grid.columns]} if grid else {}),
        "data": train.data_key,
        **{key: getattr(settings, key) for key in IDENTITY},
    }
    inputs = {"validation data": tokens["val"].data_key, "precision": precision.name}
    trips = TrainingTrips(short_name(args.trips or city.folder / "train.csv"), train.num_trips, train.data_key)
    records = {"tokens": settings.tokens, "destination": settings.destination, "trips": dataclasses.asdict(trips)}
    if settings.tokens == ROADS:
        records["network"] = dataclasses.asdict(NetworkKey.from_network(city.network))
    weights = teacher_path(config.distill, args.dataset)
    return TeacherCheckpoint(run.save, weights, identity, dataclasses.asdict(settings), inputs, records)


def log_result(checkpoint: TeacherCheckpoint, uniform: float, kind: str) -> None:
    """The best epoch, and what its perplexity means beside that of a uniform guess."""
    best = min(checkpoint.perplexities)
    logger.info(f"best epoch {checkpoint.best_epoch}, val_perplexity {best:.4f}: {checkpoint.weights}")
    logger.info(
        f"perplexity {best:.2f} over all {kind}: it hesitates as between this many; a uniform guess over each road's "
        f"successors, which knows the road network only, has {uniform:.2f}"
    )
    if best >= uniform:
        logger.warning(
            f"over all {kind} this teacher is no better than that guess; "
            "train_with_distill.py says what it is worth over the candidates"
        )
        logger.warning(
            "what may help: training it longer (teacher.max_epoch) or on more trips (--trips), a smaller teacher "
            f"(teacher.n_layer, teacher.n_embd){', larger cells (distill.grid_size)' if kind == CELLS else ''}"
        )


if __name__ == "__main__":
    run_command_line(main, kept=kept)
