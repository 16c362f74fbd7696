"""Measure map matching: simulated drivers, fixes with noise and gaps, and how many of the roads are found again.

uv run --extra import python tools/measure_matching.py
uv run --extra import python tools/measure_matching.py --osm lisbon.osm.pbf --noise 15 --interval 15 --out simulated
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.command_line import add_seed_argument, run_command_line


def main() -> None:
    """Read the command line, build or read the city, print the table."""
    args = read_arguments()
    # With osmium, which is not installed everywhere.
    from utils.city_import.extra import check_packages

    check_packages()
    from utils.city_import.proof import measure, table, write_traces
    from utils.city_import.simulated_drivers import simulate_drivers
    from utils.city_import.simulated_map import read_map, write_synthetic_map
    from utils.city_import.simulation import GpsOptions

    with tempfile.TemporaryDirectory() as folder:
        path = args.osm or write_synthetic_map((args.out or Path(folder)) / "map.osm", args.roads, args.seed)
        city = read_map(path)
    trips = simulate_drivers(city, args.trips, args.seed)
    kinds = [GpsOptions(noise, interval, args.gaps, args.seed) for noise in args.noise for interval in args.interval]
    print(f"{path.name}: {len(city.roads):,} roads, {len(city.pairs):,} relations; {len(trips):,} simulated trips")
    print(table([measure(city, trips, gps) for gps in kinds]))
    if args.out:
        write_traces(args.out / "traces.csv", city, trips, kinds[0])
        print(f"{args.out / 'traces.csv'}: fixes with {kinds[0].noise_m:g} m of noise, {kinds[0].interval_s} s apart")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--osm", type=Path, metavar="FILE", help="map (default: a synthetic city)")
    parser.add_argument("--roads", type=int, default=1000, metavar="N", help="of the synthetic city (default: 1000)")
    parser.add_argument("--trips", type=int, default=500, metavar="N", help="simulated trips (default: 500)")
    parser.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=[5, 15, 30],
        metavar="M",
        help="standard deviations (default: 5 15 30)",
    )
    parser.add_argument(
        "--interval", type=int, nargs="+", default=[5, 15, 60], metavar="S", help="between fixes (default: 5 15 60)"
    )
    parser.add_argument(
        "--gaps", type=float, default=0.0, metavar="SHARE", help="of fixes that are missing (default: 0)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write traces.csv, and the synthetic map.osm")
    add_seed_argument(parser)
    return parser.parse_args()


if __name__ == "__main__":
    run_command_line(main, kept="nothing was measured to the end")
