"""A picture of a run: its validation curves, and one test trip beside the one that the model generates.

uv run python tools/plot_run.py --dataset Demo --seed 42 --output demo.png
uv run python tools/plot_run.py --dataset Demo --run_name seed42_distill --output distilled.png

The trip is the first test trip whose number of roads is the median. The model takes the most likely road at each step,
up to twice as many roads as the real trip has; how often it arrives is written on the picture.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import (
    ONE_READER,
    add_data_arguments,
    add_seed_argument,
    answer_before_imports,
    output_file,
    run_command_line,
    warn_of_unread,
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, example="data.on_bad_trip=skip")
    which = parser.add_mutually_exclusive_group()
    add_seed_argument(which)
    which.add_argument(
        "--run_name", metavar="NAME", help="run below save/DATASET, such as seed42_distill (default: seed{N})"
    )
    parser.add_argument("--output", type=output_file, required=True, metavar="FILE", help="PNG file to write")
    return parser.parse_args()


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

import numpy as np

from models.hoser import HOSER
from utils.config import load_config
from utils.data.dataset import City, find_folder, load_city
from utils.data.road_network import read_polylines
from utils.data.trips import TimeStatistics
from utils.errors import UserError
from utils.files.atomic import atomic_write
from utils.generation.map_plot import TripPair
from utils.generation.paths import PathModel
from utils.generation.queries import queries_of
from utils.generation.reachability import Reachability
from utils.generation.walk import WalkRule, walk_trips
from utils.tracking.run import check_run_name, curves_folder
from utils.tracking.run_plot import plot_run, read_validation_curves
from utils.training.weights import load_model

MAX_TRIPS = 200  # that are generated to see how many arrive
NO_TRAINING = "nothing is trained here"
UNREAD = {**ONE_READER, **dict.fromkeys(("optimizer_config", "training", "distill"), NO_TRAINING)}


def main() -> None:
    """Read the command line, generate test trips, draw."""
    args = parse_arguments()
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, args.overrides)
    warn_of_unread(args.overrides, UNREAD)
    name = args.run_name or f"seed{args.seed}"
    check_run_name(args.dataset, name)
    curves = read_validation_curves(curves_folder(args.dataset, name))
    best = Path("save") / args.dataset / name / "best.pth"
    if not best.exists():
        raise UserError(f"{best}: no such file (of a search, only the best trials keep theirs)")
    city = load_city(args.dataset, config, args.data_dir)
    model = HOSER(config, city.features).eval()
    load_model(model, best)
    trip = generate_example(model, city)
    picture = plot_run(curves, *read_polylines(city.folder), trip, title=f"{args.dataset}, {name}")
    atomic_write(args.output, lambda file: file.write(picture))
    print(f"{args.output}: {trip.title}".replace("\n", "; "))


def generate_example(model: HOSER, city: City) -> TripPair:
    """The test trip of median length, and how many of the test trips arrive when they are generated."""
    test, statistics = city.trips("test"), TimeStatistics.from_trips(city.trips("train"))
    lengths = np.diff(test.offset)
    chosen = int(np.flatnonzero(lengths == np.sort(lengths)[(len(lengths) - 1) // 2])[0])
    number = min(len(test), MAX_TRIPS)
    tried = list(dict.fromkeys([*range(number), chosen]))
    every = queries_of(test)
    queries, max_steps = [every[i] for i in tried], [2 * int(lengths[i]) - 1 for i in tried]
    paths, reachability = PathModel(model, city.network, statistics), Reachability(city.network)
    walked = walk_trips(paths, reachability, queries, WalkRule(), max_steps, slots=number)
    made = {tried[place]: trip for place, [trip] in walked}
    arrive = sum(made[i].status == "reached" for i in range(number))
    of = "test trips" if number == len(test) else f"the first {number} test trips"
    real = test.road_id[test.offset[chosen] : test.offset[chosen + 1]].tolist()
    title = (
        f"test trip {chosen + 1}, the first of median length ({len(real)} roads)\n"
        f"{arrive / number:.0%} of {of} arrive ({arrive} of {number})"
    )
    return TripPair(made[chosen].road, real, real[-1], title)


if __name__ == "__main__":
    run_command_line(main)
