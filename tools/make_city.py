"""Build a synthetic city in HOSER's file format.

uv run python tools/make_city.py --name Demo --roads 1000 --trips 4000 --seed 0
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import answer_before_imports, run_command_line
from utils.data.synthetic.spec import MIN_TRIPS, ROADS_LIMITS, CitySpec
from utils.errors import UserError


def parse_arguments() -> tuple[CitySpec, Path]:
    """What to build, and where."""
    parser = argparse.ArgumentParser(description="Build a synthetic city: a road network and simulated trips.")
    parser.add_argument("--name", default=CitySpec.name, metavar="NAME", help="name of the city (default: %(default)s)")
    parser.add_argument(
        "--roads",
        type=int,
        default=CitySpec.roads,
        metavar="N",
        help=f"directed roads, about; {ROADS_LIMITS[0]:,} to {ROADS_LIMITS[1]:,} (default: %(default)s)",
    )
    parser.add_argument(
        "--trips",
        type=int,
        default=CitySpec.trips,
        metavar="N",
        help=f"trips, exactly; at least {MIN_TRIPS} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=CitySpec.seed, metavar="N", help="random seed (default: %(default)s)"
    )
    parser.add_argument(
        "--data_dir", type=Path, metavar="DIR", help="folder to write, absent or empty (default: data/NAME)"
    )
    args = parser.parse_args()
    try:
        spec = CitySpec(args.name, args.roads, args.trips, args.seed)
    except UserError as error:
        parser.error(str(error))
    return spec, args.data_dir or Path("data") / spec.name


if __name__ == "__main__":
    answer_before_imports(parse_arguments)

from utils.data.synthetic.writer import CitySummary, build_city


def main() -> None:
    """Read the command line, build the city, print its summary."""
    spec, folder = parse_arguments()
    summary = build_city(folder, spec)
    print(f"{spec.name} is written to {folder}")
    print(describe(summary))


def describe(city: CitySummary) -> str:
    """The summary as lines for people."""
    classes = ", ".join(f"{name} {share:.1%}" for name, share in city.highway_shares.items())
    return "\n".join(
        [
            f"roads        {city.roads}, {city.one_way_share:.1%} of them one-way",
            f"junctions    {city.junctions}",
            f"relations    {city.relations}",
            f"classes      {classes}",
            f"trips        {city.trips}",
            f"trip roads   mean {city.mean_trip_roads:.1f}, median {city.median_trip_roads:.0f}, "
            f"max {city.max_trip_roads}",
            f"mean trip    {city.mean_trip_km:.2f} km, {city.mean_trip_minutes:.1f} minutes",
            f"steps with a single candidate  {city.single_candidate_share:.1%}",
        ]
    )


if __name__ == "__main__":
    run_command_line(main, kept="no city was written")
