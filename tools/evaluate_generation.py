"""Judge generated trips: beside the real trips of their queries, as distributions, and one model beside another.

uv run python tools/evaluate_generation.py --dataset Demo --generated save/Demo/seed42/generated/trips.csv
uv run python tools/evaluate_generation.py --dataset Demo --generated one=a.csv other=b.csv --baselines
uv run python tools/evaluate_generation.py --dataset Demo --compare vanilla=a.csv,b.csv distilled=c.csv,d.csv
"""

import argparse
import json
import sys
from collections.abc import Iterator
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
    add_seed_argument(parser)
    parser.add_argument(
        "--generated",
        nargs="+",
        action="extend",
        default=[],
        type=named_files,
        metavar="[NAME=]FILE",
        help="generated trips: a file of tools/generate.py (or its folder), or with the published columns",
    )
    parser.add_argument(
        "--real", default="test", metavar="WHAT", help="real trips: test, val, train, or a CSV of trips (default: test)"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=named_files,
        metavar="[NAME=]FILE[,FILE...]",
        help="two models over the queries that all files have; several files are of several seeds, in the same order",
    )
    parser.add_argument(
        "--baselines", action="store_true", help="also judge the shortest path, the fastest path and a greedy walk"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also draw distributions.png and comparison.png")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all figures to FILE")
    args = parser.parse_args()
    if not args.generated and not args.compare:
        parser.error("expected --generated or --compare")
    if args.compare and args.compare[0][0] == args.compare[1][0]:
        parser.error(f"--compare: two models of the name {args.compare[0][0]!r}, expected two names")
    return args


def named_files(text: str) -> tuple[str, list[Path]]:
    """A type of arguments: `vanilla=a.csv,b.csv` is a name and its files; without a name, it is that of the first file.

    A file whose name has a comma or an equals sign is found under its whole name.
    """
    if Path(text).exists():
        return text, [Path(text)]
    name, mark, rest = text.partition("=")
    files = rest if mark and "/" not in name else text
    paths = [Path(part) for part in ([files] if Path(files).exists() else files.split(",")) if part]
    if not paths or (mark and not name):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected FILE or NAME=FILE")
    return (name if files is rest else str(paths[0])), paths


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

import numpy as np
from loguru import logger

from utils.config import load_config
from utils.data.cache import load_trips
from utils.data.dataset import load_roads
from utils.data.road_network import read_lengths
from utils.data.trips import read_trips
from utils.errors import UserError
from utils.files.atomic import atomic_write, atomic_write_text
from utils.generation.queries import SPLITS, queries_of
from utils.judging.generated import match_queries, read_generated
from utils.judging.judge import FEW, Judge, Judgement, judge_trips
from utils.judging.paired import Comparison, compare_models
from utils.judging.report import format_report, report_json

NO_MODEL = "no model is trained or run here"
UNREAD = {
    **ONE_READER,
    **dict.fromkeys(("distill", "optimizer_config", "training", "navigator_config"), NO_MODEL),
    **dict.fromkeys(("road_network_encoder_config", "trajectory_encoder_config"), NO_MODEL),
}
DISTRIBUTIONS, COMPARISON = "distributions.png", "comparison.png"


def main() -> None:
    """Read the command line, judge each file, compare two models, print the tables."""
    args = parse_arguments()
    judge = make_judge(args)
    judgements = list(judge_files(args, judge))
    comparison = compare_files(args, judge) if args.compare else None
    title = f"{args.dataset}, beside the {len(judge.real):,} real trips of {judge.real_name}"
    print(format_report(judgements, comparison, title))
    if args.json:
        source = {"dataset": args.dataset, "real": judge.real_name, "real_trips": len(judge.real), "seed": args.seed}
        text = json.dumps(report_json(judgements, comparison, source), indent=2, allow_nan=False) + "\n"
        atomic_write_text(args.json, lambda file: file.write(text))
    if args.plots:
        write_plots(args.plots, judge, judgements, comparison, title)


def make_judge(args: argparse.Namespace) -> Judge:
    """Read the roads and the real trips."""
    config = load_config(args.dataset, args.config, args.overrides)
    warn_of_unread(args.overrides, UNREAD)
    folder, network = load_roads(args.dataset, args.data_dir)
    rules = config.data.on_bad_trip, None, config.data.status
    args.on_bad_trip = config.data.on_bad_trip
    if args.real in SPLITS:
        real, name = load_trips(folder, args.real, network, *rules), f"{args.real}.csv"
    else:
        real, name = read_trips(Path(args.real), network, *rules), args.real
    return Judge(
        network, read_lengths(folder), real, name, lambda: load_trips(folder, "train", network, *rules), args.seed
    )


def judge_files(args: argparse.Namespace, judge: Judge) -> Iterator[Judgement]:
    """All figures of each file, and of the baselines for the queries of the first one."""
    queries = None
    for name, paths in args.generated:
        for path in paths:
            generated = read_generated(path, judge.network, args.on_bad_trip)
            label = short_name(path) if name == str(path) or len(paths) > 1 else name
            yield judge_trips(judge, generated, label if len(paths) == 1 else f"{name}: {label}")
            if len(generated) < FEW:
                logger.warning(
                    f"{path}: {len(generated):,} trips; with fewer than {FEW:,}, divergences are mostly noise: read "
                    "them beside the noise floor"
                )
            if queries is None:
                match = match_queries(generated, judge.real)
                queries = [queries_of(judge.real)[i] for i in np.unique(match[match >= 0])]
    if args.baselines:
        # With SciPy's graphs, which are not needed otherwise.
        from utils.judging.baselines import baseline_trips

        queries = queries or queries_of(judge.real)
        for name, generated in baseline_trips(judge.network, judge.length_m, judge.train_trips, queries):
            yield judge_trips(judge, generated, name)


def short_name(path: Path) -> str:
    """A name of a file for the head of a column."""
    return path.name if len(path.parts) == 1 else "/".join(path.parts[-3:])


def compare_files(args: argparse.Namespace, judge: Judge) -> Comparison:
    """Compare the two models of `--compare`.

    Raises:
        UserError: their files have no common query.
    """
    models = []
    for name, paths in args.compare:
        metrics = []
        for path in paths:
            found = judge.query_metrics(read_generated(path, judge.network, args.on_bad_trip))
            if found is None:
                raise UserError(f"{path}: no common query with {judge.real_name}, so models cannot be compared on it")
            metrics.append(found)
        models.append((short_name(Path(name)) if name == str(paths[0]) else name, metrics))
    return compare_models(*models, seed=args.seed)


def write_plots(
    folder: Path, judge: Judge, judgements: list[Judgement], comparison: Comparison | None, title: str
) -> None:
    """Draw what there is."""
    # With matplotlib, whose import takes a second.
    from utils.judging.plots import plot_comparison, plot_distributions

    if judgements:
        picture = plot_distributions(judge, judgements, title)
        atomic_write(folder / DISTRIBUTIONS, lambda file: file.write(picture))
    if comparison:
        other = plot_comparison(comparison)
        atomic_write(folder / COMPARISON, lambda file: file.write(other))


if __name__ == "__main__":
    run_command_line(main)
