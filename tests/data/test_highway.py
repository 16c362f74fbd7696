"""Highway classes get the ids that the published code gives them, however the column is spelled."""

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import chain, write_roads

from utils.data.highway import class_ids
from utils.data.road_network import read_road_network


def published_ids(path: Path) -> np.ndarray:
    """What the published code computes: a label encoder on the column as pandas reads it."""
    import pandas as pd
    from sklearn.preprocessing import LabelEncoder

    highway = pd.read_csv(path)["highway"].values.tolist()
    for i, value in enumerate(highway):
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            names = [name.strip(" '") for name in value[1:-1].split(",")]
            highway[i] = names[0] if names[0] != "unclassified" else names[1]
    return LabelEncoder().fit_transform(highway)


@pytest.mark.parametrize(
    "column",
    [
        ["primary", "residential", "Primary", "trunk_link", "primary"],
        ["['primary', 'unclassified']", "['unclassified', 'service']", "primary", "service", "trunk"],
        ["1", "2", "10", "9", "1"],
        ["1.0", "2.0", "10.0", "9.0", "1.0"],
        ["1", "2.0", "10", "1.0", "9.5"],
        ["001", "02", "10", "9", "1"],
        ["+1", "-2", "10", "-10", "9"],
        ["1e1", "2", "1e-1", "9", ".5"],
        [" 1", "2 ", "10", "9", "1"],
        ["1", "2", "10", "9", "x"],
        ["1.", "2", "10", "9", "0"],
        ["-1.5", "-1.25", "-10", "3", "3.0"],
        ["11", "2", "['10', 'unclassified']", "9", "2"],
    ],
)
def test_ids_are_those_of_the_published_code(column: list[str], tmp_path: Path) -> None:
    folder = write_roads(tmp_path, chain(len(column)), highways=column)
    network = read_road_network(folder)
    assert network.road_attr_type.tolist() == published_ids(folder / "roadmap.geo").tolist()
    assert len(network.highway_classes) == len(set(network.road_attr_type.tolist()))


def test_the_mini_city_too(mini_city: Path) -> None:
    with (mini_city / "roadmap.geo").open(newline="") as file:
        highway = [row["highway"] for row in csv.DictReader(file)]
    assert class_ids(highway)[0].tolist() == published_ids(mini_city / "roadmap.geo").tolist()


def test_classes_are_called_by_their_values() -> None:
    assert class_ids(["1.0", "10", "2", "01"])[1] == ("1", "2", "10")
    assert class_ids(["b", "a", "B"])[1] == ("B", "a", "b")
