"""Simulated drivers on the roads of an imported city."""

import numpy as np

from utils.city_import.network import City
from utils.city_import.shapes import RoadShapes
from utils.data.highway import parse_highway
from utils.data.synthetic.drivers import FIRST_DAY, drive_trips
from utils.data.synthetic.network import HIGHWAYS, UNCLASSIFIED, CityNetwork
from utils.data.trips import Trips


def simulate_drivers(city: City, trips: int, seed: int) -> Trips:
    """Exactly `trips` trips on the roads of `city`, a function of the arguments alone.

    Raises:
        UserError: the city is too small for trips of five roads.
    """
    driven = drive_trips(_network(city), trips, seed)
    start_s = FIRST_DAY.astype("M8[s]").astype(np.int64)
    no_labels = np.zeros(len(driven.road), dtype=np.int32)
    number = np.arange(1, trips + 1)
    return Trips(driven.ptr, driven.road, start_s + driven.entered_s, no_labels, line=number + 1, number=number)


def _network(city: City) -> CityNetwork:
    """The city as the drivers know cities: roads in order of the junction at which they start."""
    lines = [np.array(road.points) for road in city.roads]
    offset = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    points = np.concatenate(lines)
    shapes = RoadShapes.from_lines(points, offset)
    nodes = np.array([[road.nodes[0], road.nodes[-1]] for road in city.roads])
    junction, number = np.unique(nodes, return_inverse=True)
    start, end = number.reshape(-1, 2).T
    ends = np.empty((len(junction), 2))
    ends[end], ends[start] = shapes.xy_m[offset[1:] - 1], shapes.xy_m[offset[:-1]]
    streets = np.bincount([road.street for road in city.roads])
    classes = [parse_highway(road.highway).removesuffix("_link") for road in city.roads]
    return CityNetwork(
        start=start,
        end=end,
        highway=np.array([HIGHWAYS.index(name) if name in HIGHWAYS else UNCLASSIFIED for name in classes]),
        highway_text=np.zeros(len(lines), dtype=np.int64),
        length_m=np.array([road.length_m for road in city.roads]),
        one_way=np.array([streets[road.street] == 1 for road in city.roads]),
        out_ptr=np.searchsorted(start, np.arange(len(junction) + 1)),
        x_m=ends[:, 0],
        y_m=ends[:, 1],
        point_ptr=offset,
        lon=points[:, 0],
        lat=points[:, 1],
        origin=city.pairs[:, 0],
        destination=city.pairs[:, 1],
    )
