"""A small synthetic city as a map and GPS traces, with the trips that the traces are of."""

import pytest
from simulated import Simulated


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """About 300 roads; 320 traces with 15 m of noise and a fix each 15 seconds."""
    pytest.importorskip("osmium")
    from utils.city_import.proof import write_traces
    from utils.city_import.simulated_drivers import simulate_drivers
    from utils.city_import.simulated_map import read_map, write_synthetic_map
    from utils.city_import.simulation import GpsOptions

    folder = tmp_path_factory.mktemp("simulated")
    city = read_map(write_synthetic_map(folder / "map.osm", 300, seed=2))
    trips = simulate_drivers(city, 320, seed=2)
    write_traces(folder / "traces.csv", city, trips, GpsOptions(15.0, 15, 0.0, 2))
    return Simulated(folder, trips)
