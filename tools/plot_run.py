"""A picture of a run: its validation curves, and one trip that the model generates, on the map.

uv run python tools/plot_run.py --dataset Demo --seed 42 --output demo.png
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils.quiet_start  # noqa: F401

import torch

from models.hoser import HOSER
from utils.checkpoint import load_model
from utils.city import find_folder, load_city
from utils.command_line import add_data_arguments, add_seed_argument, run_command_line
from utils.config import load_config
from utils.errors import UserError
from utils.files import atomic_write
from utils.loader import TimeStatistics
from utils.plots import plot_run, read_scalars
from utils.rollout import greedy_trip


def main() -> None:
    """Read the command line, generate test trips until one is worth a picture, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    add_seed_argument(parser)
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    args = parser.parse_args()

    find_folder(args.dataset, args.data_dir)
    config = load_config(args.dataset, args.config, args.overrides)
    curves = read_scalars(Path("tensorboard_log") / args.dataset / f"seed{args.seed}")
    city = load_city(args.dataset, config, args.data_dir)
    model = HOSER(config, city.features).eval()
    load_model(model, Path("save") / args.dataset / f"seed{args.seed}" / "best.pth")
    test, statistics = city.trips("test"), TimeStatistics.of(city.trips("train"))
    with torch.no_grad():
        embeddings = model.embed_network()
    for trip in range(len(test)):
        real = test.road_id[test.offset[trip] : test.offset[trip + 1]].tolist()
        start_time_s = int(test.time_s[test.offset[trip]])
        made, _ = greedy_trip(
            model, embeddings, city.network, statistics, real[0], start_time_s, real[-1], 2 * len(real)
        )
        # A long trip that arrives and is not simply the real one shows most.
        if len(real) >= 20 and made[-1] == real[-1] and made != real:
            break
    else:
        raise UserError(f"{args.dataset}: no generated test trip of 20 roads or more arrives; train longer")
    picture = plot_run(curves, city.network, real, made, title=f"{args.dataset}, seed {args.seed}")
    atomic_write(args.output, lambda file: file.write(picture))
    print(f"{args.output}: test trip {trip + 1}, {len(real)} roads; the generated one has {len(made)}")


if __name__ == "__main__":
    run_command_line(main)
