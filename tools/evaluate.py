"""Metrics of a trained model on a split, or on any CSV of trips.

uv run python tools/evaluate.py --dataset Demo --checkpoint save/Demo/seed42/best.pth --split test
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

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
    add_data_arguments(parser, example="optimizer_config.batch_size=64")
    add_device_argument(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="state dict, such as save/Demo/seed42/best.pth",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--split", choices=("train", "val", "test"), default="test", help="trips (default: test)")
    source.add_argument("--trips", type=Path, metavar="FILE", help="a CSV of trips instead of a split")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the metrics to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

from models.hoser import HOSER
from utils.config import load_config
from utils.config_sections import OptimizerConfig
from utils.data.dataset import find_folder, load_city
from utils.data.loader import BatchLoader, RoadTables
from utils.data.trips import TimeStatistics
from utils.files.atomic import atomic_write
from utils.runtime.device import choose_device
from utils.runtime.memory import SMALLER_BATCHES, memory_advice
from utils.runtime.precision import Precision
from utils.training.evaluation import evaluate_in_detail, format_report
from utils.training.weights import load_model

NO_TRAINING = "nothing is trained here"
UNREAD = {
    **ONE_READER,
    **dict.fromkeys(("distill", "training.compile", "training.cuda_graph"), NO_TRAINING),
    **{
        f"optimizer_config.{field.name}": NO_TRAINING
        for field in dataclasses.fields(OptimizerConfig)
        if field.name != "batch_size"
    },
}


def main() -> None:
    """Read the command line, load city, trips and model, print the table."""
    args = parse_arguments()
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, args.overrides)
    warn_of_unread(args.overrides, UNREAD)
    device = choose_device(args.cuda, varied_shapes=True)
    city = load_city(args.dataset, config, args.data_dir)
    model = HOSER(config, city.features)
    load_model(model, args.checkpoint)
    model.to(device)

    # Times are standardised as in training, whatever the trips.
    statistics = TimeStatistics.from_trips(city.trips("train"))
    trips = city.trips_of(args.trips) if args.trips else city.trips(args.split)
    file = args.trips or city.folder / f"{args.split}.csv"
    tables = RoadTables.from_network(city.network)
    loader = BatchLoader(trips, tables, statistics, config.optimizer_config.batch_size, device)
    with memory_advice(SMALLER_BATCHES):
        report = evaluate_in_detail(model, loader, city.network, Precision(config.training.precision, device))
    print(format_report(report, title=f"{args.checkpoint} on {file}"))
    if args.json:
        split = None if args.trips else args.split
        source = {"checkpoint": str(args.checkpoint), "dataset": args.dataset, "split": split, "file": str(file)}
        text = json.dumps(source | dataclasses.asdict(report), indent=2) + "\n"
        atomic_write(args.json, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run_command_line(main)
