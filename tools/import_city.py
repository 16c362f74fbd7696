"""Make a data set of a map and GPS traces: OpenStreetMap in, roadmap.geo, roadmap.rel and train/val/test.csv out.

uv run --extra import python tools/import_city.py --name Lisbon --osm lisbon.osm.pbf --traces traces.csv

Re-running a command that was stopped resumes it. A folder that has another data set is left alone.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import add_seed_argument, run_command_line
from utils.runtime.turns import own_cores


def main() -> None:
    """Read the command line, import, say what there is."""
    args = read_arguments()
    from utils.city_import.extra import check_packages

    check_packages()
    # After the check, and not in the processes that match: they import this file, too.
    from utils.city_import.cleaning import CleaningOptions
    from utils.city_import.run import ImportOptions, import_city
    from utils.city_import.small_config import write_small_config, zone_advice
    from utils.city_import.splits import SplitOptions
    from utils.city_import.summary import describe

    folder = args.data_dir or Path("data") / args.name
    cleaning = CleaningOptions(args.max_speed, args.max_stop, args.max_gap, args.min_roads, args.min_seconds)
    options = ImportOptions(
        name=args.name,
        map_path=args.osm,
        traces_path=args.traces,
        folder=folder,
        network=args.network,
        u_turns=args.u_turns,
        box=args.bbox,
        columns=",".join(args.columns),
        timezone=args.timezone,
        skip=args.on_bad_trip == "skip",
        noise_m=args.noise,
        cleaning=cleaning,
        split=SplitOptions(tuple(args.split), args.split_by, args.by_user, args.seed),
    )
    record = import_city(options, args.workers)
    print(describe(args.name, folder, record))
    if path := write_small_config(args.name, record["network"]["roads"]):
        print(f"{path} is written: sizes of a model for so few roads")
    elif advice := zone_advice(args.name, record["network"]["roads"]):
        print(advice)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", type=name, required=True, metavar="NAME", help="of the data set")
    parser.add_argument(
        "--osm", type=Path, required=True, metavar="FILE", help="OSM XML or PBF, or GraphML that OSMnx wrote"
    )
    parser.add_argument(
        "--traces",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV with a row for each fix; or Porto's, with a POLYLINE for each trip; or FMM's result, with cpath",
    )
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="folder to write (default: data/NAME)")
    add_network_arguments(parser)
    add_trace_arguments(parser)
    add_split_arguments(parser)
    parser.add_argument(
        "--workers",
        type=at_least(1, int),
        default=len(own_cores()),
        metavar="N",
        help="processes (default: one for each core)",
    )
    args = parser.parse_args()
    if not min(abs(sum(args.split) - whole) for whole in (1, 100)) < 1e-6:
        parser.error(f"argument --split: the shares add up to {sum(args.split):g}, expected 1 (or 100)")
    return args


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Which roads there are."""
    parser.add_argument(
        "--network",
        default="drive",
        metavar="WHAT",
        help="drive: public roads open to cars; all: every way with the tag highway; or classes such as "
        "primary,secondary (default: drive)",
    )
    parser.add_argument(
        "--u_turns",
        choices=("never", "dead_ends", "always"),
        default="dead_ends",
        help="where a road is followed by its own way back (default: dead_ends)",
    )
    parser.add_argument(
        "--bbox", type=box, metavar="W,S,E,N", help="degrees: cut this out of a larger map (default: all of it)"
    )


def add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    """How traces are read, cleaned and matched."""
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAMES",
        help="of the CSV, such as trip=TripID time=Timestamp longitude=lon latitude=lat user=DriverID "
        "(default: common names are known)",
    )
    parser.add_argument(
        "--timezone",
        default="",
        metavar="ZONE",
        help="such as Europe/Lisbon: of the clocks, where times are seconds since 1970 (default: UTC)",
    )
    parser.add_argument(
        "--on_bad_trip",
        choices=("error", "skip"),
        default="error",
        help="a malformed row: stop with file and line, or leave it out and count it (default: error)",
    )
    parser.add_argument(
        "--noise",
        type=at_least(0.5),
        metavar="M",
        help="of the fixes, standard deviation in metres (default: estimated)",
    )
    for option, kind, unit, value, text in (
        ("--max_speed", at_least(1.0), "KMH", 150.0, "fixes that no car can have reached are left out"),
        ("--max_stop", at_least(1.0), "S", 300.0, "a longer stop splits a trip"),
        ("--max_gap", at_least(1.0), "S", 300.0, "a longer time without fixes splits a trip"),
        ("--min_roads", at_least(2, int), "N", 3, "shorter trips are dropped"),
        ("--min_seconds", at_least(0.0), "S", 30.0, "shorter trips are dropped"),
    ):
        parser.add_argument(option, type=kind, default=value, metavar=unit, help=f"{text} (default: {value:g})")


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Which trips are for what."""
    parser.add_argument(
        "--split",
        type=at_least(0.001),
        nargs=3,
        default=[0.7, 0.1, 0.2],
        metavar="SHARE",
        help="of train, val and test, 1 or 100 in all (default: 0.7 0.1 0.2)",
    )
    parser.add_argument(
        "--split_by",
        choices=("random", "time"),
        default="random",
        help="random: by --seed; time: the earliest trips are for training (default: random)",
    )
    parser.add_argument("--by_user", action="store_true", help="the trips of a user are in one split")
    add_seed_argument(parser)


def name(text: str) -> str:
    """A type of arguments: names of folders."""
    if not text or text.startswith(".") or not all(c.isalnum() or c in "_-." for c in text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected letters, digits, '_', '-' and '.'")
    return text


def at_least(least: float, kind: type = float) -> Callable[[str], float]:
    """A type of arguments: finite numbers from `least`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value < float("inf"):
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a {what} of {least:g} or more")
        return value

    return parse


def box(text: str) -> tuple[float, float, float, float]:
    """A type of arguments: west, south, east, north."""
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError:
        west = east = south = north = 0.0
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected WEST,SOUTH,EAST,NORTH in degrees")
    return west, south, east, north


if __name__ == "__main__":
    run_command_line(main, kept="traces that are matched are kept; the same command resumes")
