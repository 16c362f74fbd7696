"""Check the files of a data set and compute what is computed once: zones, transitions, parsed trips.

uv run python tools/prepare_dataset.py --dataset Beijing

Training does the same at its start; this shows mistakes in the data before a GPU waits for them.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import ONE_READER, add_data_arguments, answer_before_imports, run_command_line, warn_of_unread


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser, example="data.on_bad_trip=skip")
    return parser.parse_args()


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

from utils.config import load_config
from utils.data.dataset import find_folder, load_city
from utils.data.loader import make_loaders
from utils.tracking.run import log_data
from utils.training.heuristics import measure_heuristics

UNREAD = {**ONE_READER, **dict.fromkeys(("optimizer_config", "training", "distill"), "nothing is trained here")}


def main() -> None:
    """Read the command line, load everything, say what there is."""
    args = parse_arguments()
    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, args.overrides)
    warn_of_unread(args.overrides, UNREAD)
    city = load_city(args.dataset, config, args.data_dir)
    loaders = make_loaders(city, config, "cpu")
    log_data(city, loaders, measure_heuristics(loaders["val"]))


if __name__ == "__main__":
    run_command_line(main)
