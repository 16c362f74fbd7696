"""Measure training on a data set: loading, the parts of a step, evaluation, and the machine itself.

uv run python tools/benchmark.py --dataset Demo
uv run python tools/benchmark.py --dataset Demo --generation save/Demo/seed42/best.pth
uv run python tools/benchmark.py --dataset Demo --shared
uv run python tools/benchmark.py --scale 1200000 100000 --batch_size 64
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import (
    ONE_READER,
    add_data_arguments,
    add_device_argument,
    answer_before_imports,
    output_file,
    run_command_line,
    warn_of_unread,
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, dataset_required=False, example="training.precision=float32")
    add_device_argument(parser)
    parser.add_argument("--batch_size", type=int, metavar="N", help="trips in a batch (default: as configured)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="training steps to time (default: 20)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="also write a Chrome trace of a few steps to FILE")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument(
        "--scale",
        type=int,
        nargs=2,
        metavar=("ROADS", "TRIPS"),
        help="instead of a data set, five synthetic cities up to this size, on the CPU: how time and memory grow",
    )
    parser.add_argument(
        "--generation",
        type=Path,
        metavar="CHECKPOINT",
        help="instead of training, the generation of trips with this model",
    )
    parser.add_argument(
        "--queries",
        type=int,
        nargs="+",
        metavar="N",
        help="with --generation: numbers of queries, measured one after another (default: 16 150 256 900)",
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help="instead of its parts, a training step where the machine is shared: two runs at once, a busy process",
    )
    args = parser.parse_args()
    if (args.generation or args.shared) and args.scale:
        parser.error("--generation and --shared need --dataset NAME, not --scale")
    if args.generation and args.shared:
        parser.error("expected --generation CHECKPOINT or --shared, not both")
    if args.queries and (not args.generation or min(args.queries) < 1):
        parser.error("--queries needs --generation, and numbers of 1 or more")
    if (args.dataset is None) == (args.scale is None):
        parser.error("expected either --dataset NAME or --scale ROADS TRIPS")
    return args


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

from models.hoser import HOSER
from utils.benchmark.generation import NUMBERS, format_generation, measure_generation
from utils.benchmark.scaling import format_growth, measure_growth
from utils.benchmark.shared import format_shared, measure_shared
from utils.benchmark.steps import Figures, format_figures, measure
from utils.config import load_config
from utils.data.dataset import find_folder, load_city
from utils.files.atomic import atomic_write
from utils.runtime.device import choose_device
from utils.training.weights import load_model


def main() -> None:
    """Read the command line, measure, print."""
    args = parse_arguments()
    size = [f"optimizer_config.batch_size={args.batch_size}"] if args.batch_size is not None else []
    if args.scale:
        figures = measure_scale(args, size)
    elif args.shared:
        figures = measure_turns(args, size)
    else:
        figures = measure_trips(args, size) if args.generation else measure_dataset(args, size)
    if args.json:
        text = json.dumps(figures, indent=2) + "\n"
        atomic_write(args.json, lambda file: file.write(text.encode()))


def measure_dataset(args: argparse.Namespace, size: list[str]) -> Figures:
    """The parts of training on one data set."""
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, [*args.overrides, *size])
    warn_of_unread(args.overrides, ONE_READER)
    device = choose_device(args.cuda, varied_shapes=True)
    city = load_city(args.dataset, config, args.data_dir)
    figures = measure(args.dataset, config, city, device, max(args.steps, 1), args.profile)
    print(format_figures(figures))
    return figures


def measure_trips(args: argparse.Namespace, size: list[str]) -> dict[str, Any]:
    """The generation of trips on one data set."""
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, [*args.overrides, *size])
    warn_of_unread(args.overrides, ONE_READER)
    device = choose_device(args.cuda)
    city = load_city(args.dataset, config, args.data_dir)
    model = HOSER(config, city.features)
    load_model(model, args.generation)
    longest = config.trajectory_encoder_config.max_len
    figures = measure_generation(city, model.to(device), device, longest, args.queries or NUMBERS)
    print(format_generation(figures))
    return figures


def measure_turns(args: argparse.Namespace, size: list[str]) -> dict[str, Any]:
    """Training on one data set by two runs at once, on the CPU."""
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, [*args.overrides, *size])
    warn_of_unread(args.overrides, ONE_READER)
    figures = measure_shared(args.dataset, config, args.data_dir)
    print(format_shared(figures))
    return figures


def measure_scale(args: argparse.Namespace, size: list[str]) -> list[Figures]:
    """Five cities."""
    config = load_config("", args.config, [*args.overrides, *size])
    rows = measure_growth(config, *args.scale)
    print(format_growth(rows))
    return rows


if __name__ == "__main__":
    run_command_line(main)
