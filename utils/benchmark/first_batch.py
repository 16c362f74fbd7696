"""The first batch of a start, in a process of its own. Imports what a training needs, and not what measures it."""

import json
import resource
import time

from utils.config import load_config
from utils.data.dataset import load_city
from utils.data.loader import make_loaders


def first_batch(dataset: str, folder: str, settings: str) -> None:
    """Load a city and make the first batch, as a process of its own; prints its figures as JSON."""
    config = load_config(dataset, overrides=json.loads(settings))
    began = time.perf_counter()
    loaders = make_loaders(load_city(dataset, config, folder), config, "cpu")
    next(loaders["train"].shuffled(0, 0))
    figures = {
        "load_s": time.perf_counter() - began,
        "trips": sum(loader.num_trips for loader in loaders.values()),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures), flush=True)
