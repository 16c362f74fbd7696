"""One road far from all others: told by file and line when data are read, and where a grid is made of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import append_line, error_of
from scripts import make_mini_project, make_mini_teacher, mini, run

from utils.config import load_config
from utils.data.road_network import RoadNetwork, describe_far_roads, read_road_network
from utils.distillation.grid import make_grid
from utils.distillation.teacher_training import make_teacher
from utils.distillation.tokens import cell_tokens


def add_road(folder: Path, lon: float, lat: float) -> int:
    """Add a road of the mini city there; returns its line in roadmap.geo."""
    path = folder / "data" / "Mini" / "roadmap.geo"
    header, first = path.read_text().splitlines()[:2]
    number = path.read_text().count("\n") - 1
    columns = dict.fromkeys(header.split(","), "")
    columns |= {
        "geo_id": str(number),
        "coordinates": f'"[[{lon}, {lat}], [{lon + 1e-4}, {lat}]]"',
        "length": "7",
        "highway": "primary",
    }
    assert first
    for name in ("road_network_partition", "zone_trans_mat.npy"):
        (path.parent / name).unlink(missing_ok=True)
    return append_line(path, ",".join(columns.values()))


def place(network: RoadNetwork) -> tuple[float, float]:
    lon, lat = np.median(network.center, axis=0)
    return float(lon), float(lat)


def test_nothing_is_far_in_the_cities_at_hand(mini_city: Path) -> None:
    assert describe_far_roads(read_road_network(mini_city)) == ""


@pytest.mark.parametrize(("lon", "lat"), [(0.0, 0.0), (2.0, 0.0), (0.0, -0.5), (-179.0, 80.0)])
def test_a_road_far_away_is_named_with_its_line(lon: float, lat: float, tmp_path: Path) -> None:
    folder = make_mini_project(tmp_path)
    data = folder / "data" / "Mini"
    middle = place(read_road_network(data))
    offset = (0.0, 0.0) if (lon, lat) in ((0.0, 0.0), (-179.0, 80.0)) else middle
    line = add_road(folder, lon + offset[0], lat + offset[1])
    text = describe_far_roads(read_road_network(data))
    assert text.startswith(f"line {line} (road 121 at [")
    assert " km from the middle of the city; all others within " in text


def test_several_roads_far_away_are_counted(tmp_path: Path) -> None:
    folder = make_mini_project(tmp_path)
    first = add_road(folder, 0.0, 0.0)
    add_road(folder, 1.0, 0.0)
    text = describe_far_roads(read_road_network(folder / "data" / "Mini"))
    assert text.startswith(f"line {first} (road 121 at [") and " and 1 more, " in text


def test_preparing_data_says_so_and_a_grid_says_what_it_makes_of_it(tmp_path: Path) -> None:
    folder = make_mini_teacher(make_mini_project(tmp_path))
    line = add_road(folder, 0.0, 0.0)
    done = run(mini("tools/prepare_dataset.py"), folder)
    assert done.returncode == 0, done.stderr
    assert f"data/Mini/roadmap.geo, line {line} (road 121 at [5e-05, 0], " in done.stderr
    for command in (mini("tools/train_teacher.py"), mini("train_with_distill.py")):
        done = run(command, folder)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: distill.grid_size 0.001 makes ")
        assert f"roadmap.geo, line {line} (road 121 at " in last
        assert last.endswith("raise distill.grid_size or distill.downsample")


def test_a_teacher_that_does_not_fit_into_the_memory_names_the_keys_and_the_road(
    tmp_path: Path, messages: list[str]
) -> None:
    folder = make_mini_project(tmp_path)
    middle = place(read_road_network(folder / "data" / "Mini"))
    line = add_road(folder, middle[0] + 3.0, middle[1] + 3.0)
    network = read_road_network(folder / "data" / "Mini")
    grid = make_grid(network, 0.001, 1)
    config = load_config(overrides={"teacher.n_embd": 65_536, "teacher.n_head": 1, "teacher.n_layer": 1}).teacher
    message = error_of(make_teacher, config, cell_tokens(grid), torch.device("cpu"))
    assert message.startswith("a teacher of ") and " are free; distill.grid_size 0.001 makes " in message
    assert f"roadmap.geo, line {line} (road 121" in message
    assert message.endswith("raise distill.grid_size or distill.downsample, or lower n_embd")


def test_a_grid_of_a_whole_number_of_tokens_too_many_is_refused(mini_city: Path) -> None:
    network = read_road_network(mini_city)
    assert "more than the 16,777,208 that a teacher can have" in error_of(make_grid, network, 1e-6, 1)
    assert make_grid(network, 1e-6, 1000).num_cells < 1_000_000
