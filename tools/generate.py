"""Generate trips with a trained model: from an origin and a start time to a destination.

uv run python tools/generate.py --dataset Demo --checkpoint save/Demo/seed42/best.pth
uv run python tools/generate.py --dataset Demo --checkpoint save/Demo/seed42/best.pth --queries train-od --number 5000
uv run python tools/generate.py --dataset Demo --checkpoint save/Demo/seed42/best.pth --queries my.csv --k 3 --map

Re-running a command that was stopped resumes it. Trips that are there already stay: those of other options, of another
checkpoint or of other data go to a folder beside.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
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
from utils.generation.options import MAX_EXPANSIONS, METHODS, SLOTS, GenerationOptions


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    add_seed_argument(parser)
    add_device_argument(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="state dict, such as save/Demo/seed42/best.pth")
    parser.add_argument(
        "--queries",
        default="test",
        metavar="WHAT",
        help="test, val or train: origin, start time and destination of each trip; train-od: sampled from train.csv as "
        "published; or a CSV of trips, or with the columns origin, destination, start_time (default: test)",
    )
    parser.add_argument(
        "--number", type=whole(1), metavar="N", help="queries (default: all; of train-od 5000, as published)"
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="search",
        help="search: as published; exact: the most probable paths, certainly; greedy: the best road at each step; "
        "sample: roads drawn from the model (default: search)",
    )
    parser.add_argument("--k", type=whole(1), default=1, metavar="K", help="trips of each query (default: 1)")
    parser.add_argument(
        "--max_expansions",
        type=whole(0),
        default=MAX_EXPANSIONS,
        metavar="N",
        help=f"paths that a search extends, or steps of greedy and sample; 0: no limit (default: {MAX_EXPANSIONS})",
    )
    parser.add_argument(
        "--temperature", type=temperature, default=1.0, metavar="T", help="of sample; lower is bolder (default: 1.0)"
    )
    parser.add_argument(
        "--top_k", type=whole(0), default=0, metavar="K", help="of sample: only the K best roads (default: 0, all)"
    )
    parser.add_argument(
        "--times",
        choices=("point", "sampled"),
        default="point",
        help="point: as predicted and published; sampled: with the spread of val.csv (default: point)",
    )
    parser.add_argument(
        "--status",
        choices=("all", "reached"),
        default="all",
        help="trips in trips.csv; reached: the others go to missed.csv (default: all)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: generated, beside the checkpoint)")
    parser.add_argument("--geojson", action="store_true", help="also write trips.geojson, lines along the roads")
    parser.add_argument("--map", action="store_true", help="also draw map.png")
    parser.add_argument("--public_csv", action="store_true", help="also write public.csv, with the published columns")
    parser.add_argument(
        "--slots", type=whole(1), default=SLOTS, metavar="N", help=f"queries worked on at once (default: {SLOTS})"
    )
    return parser.parse_args()


def whole(least: int) -> Callable[[str], int]:
    """A type of arguments: whole numbers from `least`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of {least} or more")
        return int(text)

    return parse


def temperature(text: str) -> float:
    """A type of arguments: numbers above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")
    return value


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

import numpy as np
from loguru import logger

from utils.config import load_config
from utils.data.dataset import City, find_folder, load_city
from utils.data.road_network import read_polylines
from utils.files.atomic import atomic_write
from utils.generation.job import GenerationJob
from utils.generation.map_plot import TripPair, choose_pairs, plot_trips, road_usage
from utils.generation.queries import read_queries, real_roads
from utils.generation.run import check_options, choose_folder, format_summary, generate
from utils.generation.trip_files import GEOJSON, MAP, PUBLIC, TripRow, write_geojson, write_public
from utils.runtime.device import choose_device
from utils.runtime.distributed import join_processes
from utils.runtime.memory import memory_advice

NO_TRAINING = "nothing is trained here"
UNREAD = {
    **ONE_READER,
    **dict.fromkeys(("distill", "optimizer_config"), NO_TRAINING),
    "training": "trips are generated in float32, without compilation",
}
kept = Kept("nothing has been generated yet")


def main() -> None:
    """Read the command line, load what is needed, generate, print the summary."""
    args = parse_arguments()
    check_options(args.method, args.k)
    drop_unread(args)
    processes = join_processes()
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, args.overrides)
    warn_of_unread(args.overrides, UNREAD)
    device = choose_device(args.cuda, processes)
    with processes.main_process_first():
        city = load_city(args.dataset, config, args.data_dir)
        queries = read_queries(args.queries, city, args.number, args.seed)
    names = [field.name for field in dataclasses.fields(GenerationOptions)]
    options = GenerationOptions(**{name: getattr(args, name) for name in names})
    job = GenerationJob(
        args.checkpoint, config, city, queries, options, device, args.times, args.status == "reached", args.slots
    )
    identity = job.identity()
    folder = choose_folder(args.out or default_folder(args), identity)
    kept.text = f"finished blocks are in {folder}; the same command resumes"
    with memory_advice("lower --slots"):
        summary = generate(folder, job, identity, processes, partial(write_more, args, city))
    if summary:
        print(format_summary(summary, folder, args.method))


def drop_unread(args: argparse.Namespace) -> None:
    """Take the options that the method does not read as not given."""
    defaults = GenerationOptions()
    for name in ("temperature", "top_k"):
        if args.method != "sample" and getattr(args, name) != getattr(defaults, name):
            logger.warning(f"--{name} has no effect: --method {args.method} draws nothing")
            setattr(args, name, getattr(defaults, name))


def default_folder(args: argparse.Namespace) -> Path:
    """Beside a checkpoint below save/; otherwise where a run with this seed is."""
    if "save" in args.checkpoint.parent.parts:
        return args.checkpoint.parent / "generated"
    return Path("save") / args.dataset / f"seed{args.seed}" / "generated"


def write_more(args: argparse.Namespace, city: City, folder: Path, rows: Callable[[], Iterator[TripRow]]) -> None:
    """The files that were asked for besides."""
    if args.public_csv:
        write_public(folder / PUBLIC, rows())
    if not (args.geojson or args.map):
        return
    points, offset = read_polylines(city.folder)
    if args.geojson:
        write_geojson(folder / GEOJSON, rows(), points, offset)
    if args.map:
        picture = draw_map(args, city, rows, np.split(points, offset[1:-1]))
        atomic_write(folder / MAP, lambda file: file.write(picture))


def draw_map(args: argparse.Namespace, city: City, rows: Callable[[], Iterator[TripRow]], lines: list) -> bytes:
    """Six trips, and how often each road is taken."""
    real = real_roads(args.queries, city)
    made = {row.source_row: row for row in rows() if row.rank == 1}
    pairs = []
    for number, row in made.items():
        own, arrives = real.get(number), "" if row.status == "reached" else f" ({row.status})"
        name = f"query {number + 1}: " + (f"real {len(own)}, " if own is not None else "")
        pairs.append(TripPair(row.road, own, row.destination, f"{name}generated {len(row.road)} roads{arrives}"))
    usage = road_usage((row.road for row in made.values()), len(lines))
    real_usage = road_usage((real[number] for number in made), len(lines)) if real else None
    reached = sum(row.status == "reached" for row in made.values()) / len(made)
    title = f"{args.dataset}, {args.checkpoint}: {len(made):,} trips ({args.method}), {reached:.1%} reach"
    return plot_trips(lines, choose_pairs(pairs), usage, real_usage, f"{title} their destination")


if __name__ == "__main__":
    run_command_line(main, kept=kept)
