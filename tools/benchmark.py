"""Measure training on a data set: loading, the parts of a step, evaluation, and the machine itself.

uv run python tools/benchmark.py --dataset Demo
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.quiet_start  # noqa: F401

from utils.benchmark import format_figures, measure
from utils.city import find_folder, load_city
from utils.command_line import add_data_arguments, add_device_argument, run_command_line
from utils.config import load_config
from utils.device import choose_device
from utils.files import atomic_write


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--batch_size", type=int, help="trips in a batch (default: as configured)")
    parser.add_argument("--steps", type=int, default=20, help="training steps to time (default: 20)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="also write a Chrome trace of a few steps to FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()

    find_folder(args.dataset, args.data_dir)
    size = [f"optimizer_config.batch_size={args.batch_size}"] if args.batch_size is not None else []
    config = load_config(args.dataset, args.config, [*args.overrides, *size])
    city = load_city(args.dataset, config, args.data_dir)
    figures = measure(args.dataset, config, city, choose_device(args.cuda), max(args.steps, 1), args.profile)
    print(format_figures(figures))
    if args.json:
        text = json.dumps(figures, indent=2) + "\n"
        atomic_write(args.json, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run_command_line(main)
