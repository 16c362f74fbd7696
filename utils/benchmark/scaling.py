"""How time and memory grow with the size of a city: five cities, each twice the one before; an epoch, and trips."""

import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from loguru import logger

from models.hoser import HOSER
from utils.config import Config
from utils.data.cache import load_network, load_trips
from utils.data.dataset import load_city
from utils.data.loader import make_loaders
from utils.data.synthetic.writer import CitySpec, build_city
from utils.data.zones import ZONE_KEY
from utils.errors import UserError
from utils.generation.generator import TripGenerator
from utils.generation.options import GenerationOptions
from utils.generation.paths import PathModel
from utils.generation.queries import sample_queries
from utils.runtime.device import keep_freed_memory, set_seed
from utils.training.engine import Learner, evaluate, train_epoch
from utils.training.losses import HOSERLoss

SIZES = 5
LEAST_TRIPS = 20
QUERIES, MAX_EXPANSIONS = 100, 500  # trips that are generated
MEASURED = ("read_s", "zones_s", "epoch_s", "validation_s", "generation_s", "expansions_per_s", "peak_rss_mb")


def measure_growth(config: Config, roads: int, trips: int) -> list[dict[str, float]]:
    """Measurements of five cities, the largest with `roads` roads and `trips` trips; built in a temporary folder.

    Raises:
        UserError: the smallest would be too small, or one cannot be trained.
    """
    rows, zones = [], config.road_network_encoder_config.zone_id_num_embeddings
    least_roads, least_trips = (2 * zones) << (SIZES - 1), LEAST_TRIPS << (SIZES - 1)
    if roads < least_roads or trips < least_trips:
        raise UserError(
            f"--scale {roads} {trips}: expected at least {least_roads} roads and {least_trips} trips: the first city "
            f"has a sixteenth of them, and {ZONE_KEY} is {zones}"
        )
    for halvings in reversed(range(SIZES)):
        with tempfile.TemporaryDirectory(prefix="scale-") as name:
            folder = Path(name) / "city"
            spec = CitySpec("city", roads >> halvings, trips >> halvings)
            logger.info(f"a city of {spec.roads:,} roads and {spec.trips:,} trips")
            build_city(folder, spec)
            rows.append(_in_a_process_of_its_own(folder, config))
    return rows


def growth(rows: list[dict[str, float]], name: str) -> float:
    """The exponent e of `name` ~ roads^e, by least squares of the logarithms."""
    x, y = (np.log([row[key] for row in rows]) for key in ("roads", name))
    return float(np.polyfit(x, y, 1)[0])


def format_growth(rows: list[dict[str, float]]) -> str:
    """A line for each city, and one for the exponents."""
    lines = [f"{'roads':>10} {'trips':>9}" + "".join(f"{name:>17}" for name in MEASURED)]
    for row in rows:
        values = "".join(f"{row[name]:>17,.1f}" for name in MEASURED)
        lines.append(f"{row['roads']:>10,.0f} {row['trips']:>9,.0f}{values}")
    exponents = "".join(f"{growth(rows, name):>17.2f}" for name in MEASURED)
    return "\n".join([*lines, f"{'exponent':>20}{exponents}"])


def _in_a_process_of_its_own(folder: Path, config: Config) -> dict[str, float]:
    """Memory is a process' own highest."""
    # Forked from a server that has imported what it takes seconds to import.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(train_and_generate, folder, config).result()
        except BrokenProcessPool:
            raise UserError(f"{folder.name}: the measuring process was killed; too little memory?") from None


def train_and_generate(path: Path, config: Config) -> dict[str, float]:
    """Read a city for the first time, make its zones, train an epoch, validate, generate trips; what all this takes."""
    logger.remove()
    keep_freed_memory(varied_shapes=True)
    times = [time.perf_counter()]

    network = load_network(path)
    trips = sum(len(load_trips(path, split, network, "error")) for split in ("train", "val", "test"))
    times.append(time.perf_counter())
    city = load_city("city", config, path)
    times.append(time.perf_counter())
    loaders = make_loaders(city, config, "cpu")
    set_seed(0)
    model = HOSER(config, city.features)
    learner = Learner.from_config(model, config, loaders["train"])
    for _ in train_epoch(learner, loaders["train"], HOSERLoss(loaders["train"].statistics), 0, 0, 0):
        pass
    times.append(time.perf_counter())
    evaluate(model, loaders["val"], learner.precision, "validating")
    times.append(time.perf_counter())
    train = city.trips("train")
    paths = PathModel(model, network, loaders["train"].statistics)
    options = GenerationOptions(max_expansions=MAX_EXPANSIONS)
    generator = TripGenerator(paths, network, options, config.trajectory_encoder_config.max_len)
    queries = sample_queries(train, network.num_roads, QUERIES, seed=0)
    expansions = sum(trip.expansions for _, [trip] in generator.trips(queries))
    times.append(time.perf_counter())

    read, zones, epoch, validation, generation = np.diff(times).tolist()
    return {
        "roads": network.num_roads,
        "trips": trips,
        "read_s": read,
        "zones_s": zones,
        "epoch_s": epoch,
        "validation_s": validation,
        "generation_s": generation,
        "expansions_per_s": expansions / generation,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
