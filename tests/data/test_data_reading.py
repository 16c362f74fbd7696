"""What the files of a data set mean: every accepted spelling is read as what it says."""

import dataclasses
import json
import os
import random
import re
import shutil
from calendar import monthrange
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    TRIP_HEADER,
    chain,
    contents,
    error_of,
    replace_line,
    time_list,
    trip,
    write_lines,
    write_roads,
    write_trips,
)
from hypothesis import given
from hypothesis import strategies as st

from utils.config import Config, load_config
from utils.data.cache import load_network, load_trips
from utils.data.csv_reader import parse_integers
from utils.data.dataset import load_city
from utils.data.road_network import RoadNetwork, read_road_network
from utils.data.trips import Trips, parse_times, parse_trips, read_trips
from utils.data.zones import partition_roads, read_partition
from utils.files.tensor_files import load_tensors, save_tensors

ZONES_8 = "road_network_encoder_config.zone_id_num_embeddings=8"


@pytest.fixture
def config() -> Config:
    """The published sizes with 8 zones."""
    return load_config(overrides=[ZONES_8])


def as_lists(trips: Trips) -> list[tuple[list[int], list[int], list[int]]]:
    """Roads, times and ranks of each trip."""
    bounds = [slice(*pair) for pair in zip(trips.offset[:-1], trips.offset[1:], strict=True)]
    return [(trips.road_id[b].tolist(), trips.time_s[b].tolist(), trips.label[b].tolist()) for b in bounds]


def routes(trips: Trips) -> list[list[int]]:
    return [roads for roads, _, _ in as_lists(trips)]


def seconds(text: str) -> int:
    """By the standard library: what `parse_times` must give."""
    return int((datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ") - datetime(1970, 1, 1)).total_seconds())


# Whole numbers -------------------------------------------------------------------------------------------------


@given(st.lists(st.text("0123456789 ,+-.e\t\n\0_x٣", max_size=8), min_size=1, max_size=3))
def test_a_list_of_whole_numbers_is_read_as_python_reads_it_or_not_at_all(texts: list[str]) -> None:
    items = ",".join(texts).split(",")
    expected = None
    if all(re.fullmatch(r"\s*[+-]?\d+\s*", item, re.ASCII) for item in items):
        expected = [int(item) for item in items]
    found = parse_integers(texts)
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize("text", ["9223372036854775808", "-99999999999999999999", "1, ,2", "1,,2", "1,+", "1,\0", ""])
def test_what_is_no_whole_number_is_never_taken_for_one(text: str) -> None:
    assert parse_integers([text]) is None


# Times ---------------------------------------------------------------------------------------------------------


def test_times_are_those_of_the_standard_library_through_all_years() -> None:
    rng = random.Random(0)
    span = int((datetime(9999, 12, 31, 23, 59, 59) - datetime(1, 1, 1)).total_seconds())
    moments = [datetime(1, 1, 1) + timedelta(seconds=rng.randint(0, span)) for _ in range(5000)]
    moments += [datetime(year, 2, 28) + timedelta(days=1) for year in (1900, 1999, 2000, 2015, 2016, 2024, 2100)]
    texts = [f"{m.year:04}-{m:%m-%dT%H:%M:%SZ}" for m in moments]
    assert parse_times(",".join(texts) + ",").tolist() == [seconds(text) for text in texts]


def test_exactly_the_days_of_the_calendar_are_accepted() -> None:
    for year in (1900, 2000, 2015, 2016):
        for month in range(14):
            last = monthrange(year, month)[1] if 1 <= month <= 12 else 0
            accepted = [d for d in range(33) if parse_times(f"{year}-{month:02}-{d:02}T00:00:00Z,") is not None]
            assert accepted == list(range(1, last + 1))


@given(st.integers(0, 19), st.characters(codec="utf-8"))
def test_a_time_with_one_character_changed_is_read_as_the_standard_library_reads_it(place: int, new: str) -> None:
    good = "2016-02-29T23:59:59Z"
    text = good[:place] + new + good[place + 1 :]
    try:
        expected = [seconds(text)] if re.fullmatch(r"[\dTZ:-]*", text, re.ASCII) else None
    except ValueError:
        expected = None
    found = parse_times(text + ",")
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2015-11-05T08:00Z",
        "2015-11-05T08:00:00+8",
        "20151105T080000Z",
        "2015-11-05T24:00:00Z",
        "2015-11-05T08:60:00Z",
        "2015-11-05T08:00:60Z",
        "0000-01-01T00:00:00Z",
        "1446710400",
        "05/11/2015 08:00:00",
        "nan",
    ],
)
def test_another_form_of_time_is_refused_alone_and_among_good_ones(text: str, network: RoadNetwork, workplace: Path):
    assert parse_times(text + ",") is None
    # The second row makes the reader go row by row: the answer must not depend on the neighbours.
    for other in ([], [trip("0,1", "x,y")]):
        path = write_trips(workplace / "t.csv", trip("0,1"), trip("0,1", f"{text},{time_list(1)}"), *other)
        assert f"line 3: trip 2: time_list: found '{text}'" in error_of(read_trips, path, network)


# Split files ---------------------------------------------------------------------------------------------------

WANTED = [[0, 1, 2], [1, 0]]


@pytest.mark.parametrize(
    "rids",
    ["0,1,2", "[0, 1, 2]", "[0,1,2]", " 0 , 1 , 2 ", " [ 0,1,\t2 ] ", "00,01,02", "+0,1,2", "0,\n1,\n2"],
)
def test_brackets_and_blanks_around_road_ids_mean_nothing(rids: str, network: RoadNetwork, workplace: Path) -> None:
    path = write_trips(workplace / "t.csv", trip(rids), trip("1,0"))
    assert routes(read_trips(path, network)) == WANTED


def test_brackets_and_blanks_around_times_mean_nothing(network: RoadNetwork, workplace: Path) -> None:
    plain = time_list(2)
    spelled = [plain, f"[{plain}]", plain.replace(",", ", "), f" [ {plain} ] "]
    path = write_trips(workplace / "t.csv", *(trip("0,1", times) for times in spelled))
    assert read_trips(path, network).time_s.reshape(4, 2).tolist() == [[seconds(t) for t in plain.split(",")]] * 4


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last_end", [True, False])
def test_line_ends_of_every_system_are_read(end: str, last_end: bool, network: RoadNetwork, workplace: Path) -> None:
    path = write_lines(workplace / "t.csv", TRIP_HEADER, trip("0,1,2"), trip("1,0"), end=end)
    if not last_end:
        path.write_bytes(path.read_bytes().removesuffix(end.encode()))
    assert routes(read_trips(path, network)) == WANTED


def test_blank_lines_are_no_trips(network: RoadNetwork, workplace: Path) -> None:
    path = write_trips(workplace / "t.csv", "", trip("0,1,2"), "", "", trip("1,0"), "", "")
    assert routes(read_trips(path, network)) == WANTED


def test_a_byte_order_mark_is_no_part_of_the_first_column(network: RoadNetwork, workplace: Path) -> None:
    path = write_lines(workplace / "t.csv", f"\ufeff{TRIP_HEADER}", trip("0,1,2"), trip("1,0"))
    assert routes(read_trips(path, network)) == WANTED


def test_columns_are_found_by_name_in_any_order_among_others(network: RoadNetwork, workplace: Path) -> None:
    path = write_lines(
        workplace / "t.csv",
        '"time_list",mm_id, rid_list ,note',
        f'"{time_list(3)}",7,"0,1,2","a ""quoted"" note, with a comma\nand a line break"',
        f'"{time_list(2)}",8,"1,0",',
    )
    assert routes(read_trips(path, network)) == WANTED


def test_a_label_is_the_place_among_the_candidates_in_the_order_of_the_file(workplace: Path) -> None:
    """1 -> 2 stands before 1 -> 0 in roadmap.rel, and once more behind it: the first counts."""
    write_roads(workplace, chain(3), [(1, 2), (0, 1), (1, 0), (1, 2), (2, 2)])
    network = read_road_network(workplace)
    assert network.reach_road[network.reach_ptr[1] : network.reach_ptr[2]].tolist() == [2, 0, 2]
    path = write_trips(workplace / "t.csv", trip("0,1,2"), trip("1,0"), trip("2,2"))
    assert [ranks for _, _, ranks in as_lists(read_trips(path, network))] == [[0, 0, 0], [1, 0], [0, 0]]


def test_a_dead_end_may_be_a_destination_only(network: RoadNetwork, workplace: Path) -> None:
    assert routes(read_trips(write_trips(workplace / "a.csv", trip("2,3")), network)) == [[2, 3]]
    assert "does not connect road 3 to road 2" in error_of(
        read_trips, write_trips(workplace / "b.csv", trip("3,2")), network
    )


def test_equal_times_are_no_error(network: RoadNetwork, workplace: Path) -> None:
    path = write_trips(workplace / "t.csv", trip("0,1,2", time_list(3, seconds=0)))
    assert np.ptp(read_trips(path, network).time_s) == 0


# Skipping malformed trips --------------------------------------------------------------------------------------

BAD_ROWS = [
    trip("0,9"),
    "0,1",
    trip("0,2"),
    trip("0,1", "x,y"),
    trip("1"),
    trip("0,1", f"{time_list(2)},{time_list(1)}"),
    trip(""),
    '"0,1"',
    trip("2,1,0,1"),
    trip("0, ,1"),
]


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 7_000])
def test_skipping_leaves_exactly_the_good_trips(copies: int, network: RoadNetwork, workplace: Path) -> None:
    """Also in a file of several chunks, where a chunk may be all good, mixed, or end in a bad trip."""
    good = [trip("0,1,2"), trip("1,0"), trip("2,3")] * copies
    clean = write_trips(workplace / "clean.csv", *good)
    first, *others, last = BAD_ROWS
    mixed = list(good)
    for i, row in enumerate(others):
        mixed.insert(len(mixed) * i // len(others), row)
    dirty = write_trips(workplace / "dirty.csv", first, *mixed, last)
    wanted, found = read_trips(clean, network, "skip"), read_trips(dirty, network, "skip")
    for name in ("offset", "road_id", "time_s", "label"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert (len(wanted), wanted.skipped, wanted.first_skipped) == (3 * copies, 0, None)
    assert (len(found), found.skipped) == (3 * copies, len(BAD_ROWS))
    assert found.first_skipped == (2, "trip 1: position 2: found road 9, expected ids from 0 to 3")


def test_a_malformed_trip_far_down_the_file_is_named_by_its_line(network: RoadNetwork, workplace: Path) -> None:
    rows = [trip("0,1")] * 45_000
    rows[41_234] = trip("0,2")
    path = write_trips(workplace / "t.csv", *rows)
    assert error_of(read_trips, path, network).startswith("t.csv, line 41236: trip 41235: positions 1 and 2: ")


def test_skipped_trips_are_reported_also_when_they_come_from_the_cache(
    network: RoadNetwork, workplace: Path, messages: list[str]
) -> None:
    write_trips(workplace / "train.csv", trip("0,1"), trip("0,2"), trip("1,9"), trip("1,2"))
    first, second = (load_trips(workplace, "train", network, "skip") for _ in range(2))
    assert as_lists(first) == as_lists(second)
    report = (
        f"{workplace / 'train.csv'}: skipped 2 malformed trips of 4 (the first: line 3: trip 2: positions 1 and 2: "
        "roadmap.rel does not connect road 0 to road 2)"
    )
    assert messages == [report, report]


def test_a_skipping_run_does_not_hide_malformed_trips_from_a_later_run(network: RoadNetwork, workplace: Path) -> None:
    write_trips(workplace / "train.csv", trip("0,1"), trip("0,2"))
    assert len(load_trips(workplace, "train", network, "skip")) == 1
    assert "line 3: trip 2" in error_of(load_trips, workplace, "train", network, "error")


# The cache of parsed trips -------------------------------------------------------------------------------------


@pytest.fixture
def cached(network: RoadNetwork, workplace: Path) -> Path:
    """A folder with a train.csv that was loaded once; returns the cache file."""
    write_trips(workplace / "train.csv", trip("0,1,2"), trip("1,0"))
    assert routes(load_trips(workplace, "train", network, "error")) == WANTED
    (path,) = (workplace / ".cache").glob("train-*.pt")
    return path


def test_trips_are_loaded_from_the_cache_without_parsing_again(cached: Path, network: RoadNetwork) -> None:
    plain = load_trips(Path(), "train", network, "error")
    assert as_lists(plain) == as_lists(read_trips(Path("train.csv"), network))
    content = load_tensors(cached)
    content["time_s"] += 1000  # a mark that only the cache can bear
    save_tensors(content, cached)
    assert (load_trips(Path(), "train", network, "error").time_s == plain.time_s + 1000).all()


def test_a_changed_csv_is_read_anew_and_its_old_cache_removed(cached: Path, network: RoadNetwork) -> None:
    stat = Path("train.csv").stat()
    write_trips(Path("train.csv"), trip("1,2,3"), trip("1,0"))
    os.utime("train.csv", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time
    assert Path("train.csv").stat().st_size == stat.st_size
    assert routes(load_trips(Path(), "train", network, "error")) == [[1, 2, 3], [1, 0]]
    assert not cached.exists()


def test_changed_relations_make_the_cached_labels_void(cached: Path, workplace: Path) -> None:
    write_roads(workplace, chain(4), [(1, 0), (1, 2), (0, 1), (2, 3)])
    trips = load_trips(workplace, "train", read_road_network(workplace), "error")
    assert [ranks for _, _, ranks in as_lists(trips)] == [[0, 1, 0], [0, 0]]


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "empty", "other tensors", "a list"])
def test_a_damaged_cache_is_made_anew_with_a_warning(
    damage: str, cached: Path, network: RoadNetwork, messages: list[str]
) -> None:
    sound = cached.read_bytes()
    if damage == "truncated":
        cached.write_bytes(sound[: len(sound) // 2])
    elif damage == "bit flipped":
        place = sound.index((1_446_710_400).to_bytes(8, "little"))  # the first time
        cached.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
    elif damage == "empty":
        cached.write_bytes(b"")
    else:
        save_tensors({"weights": torch.zeros(2)} if damage == "other tensors" else [1, 2], cached)
    assert routes(load_trips(Path(), "train", network, "error")) == WANTED
    assert [str(cached.relative_to(Path.cwd())) in message for message in messages] == [True]
    assert cached.read_bytes() == sound


def network_arrays(network: RoadNetwork) -> dict[str, Any]:
    values = dataclasses.asdict(network)
    return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in values.items()}


def test_the_road_network_too_is_loaded_from_a_cache_and_read_anew_when_a_file_changes(
    mini_city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr("utils.data.cache.read_road_network", lambda f: read.append(f) or read_road_network(f))
    first, second = (load_network(mini_city) for _ in range(2))
    assert len(read) == 1
    assert network_arrays(first) == network_arrays(second) == network_arrays(read_road_network(mini_city))
    lines = (mini_city / "roadmap.rel").read_text().splitlines()
    (mini_city / "roadmap.rel").write_text("\n".join(lines[:-1]) + "\n")
    assert len(load_network(mini_city).reach_road) == len(first.reach_road) - 1
    assert len(read) == 2
    (cache,) = (mini_city / ".cache").glob("network-*.pt")  # the old one is gone
    cache.write_bytes(cache.read_bytes()[:-100])
    assert len(load_network(mini_city).reach_road) == len(first.reach_road) - 1
    assert len(read) == 3


# roadmap.geo ---------------------------------------------------------------------------------------------------


def test_roads_are_adjacent_where_the_text_of_an_end_point_is_the_same(workplace: Path) -> None:
    """`116.0` and `116.00` are one place, but two texts; the published code compares texts."""
    polylines = [
        "[[116.5, 39.9], [116.0, 39.9]]",
        "[[116.0, 39.9], [116.1, 39.9]]",
        "[[116.00, 39.9], [116.2, 39.9]]",
        "[[116.3, 39.9], [116.00,39.9]]",
        "[[116.7, 39.9], [116.0, 39.9], [116.8, 39.9]]",
    ]
    network = read_road_network(write_roads(workplace, polylines, [(0, 1)]))
    assert network.road_edge_index.T.tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]


def test_edge_attributes_say_how_much_the_heading_turns_and_whether_one_can_drive_on(workplace: Path) -> None:
    east, back, north = "[[0, 0], [1, 0]]", "[[1, 0], [0, 0]]", "[[1, 0], [1, 1]]"
    network = read_road_network(write_roads(workplace, [east, back, north], [(0, 2), (0, 1)]))
    attributes = dict(
        zip(map(tuple, network.road_edge_index.T.tolist()), network.intersection_attr.tolist(), strict=True)
    )
    assert attributes == {
        (0, 1): [1.0, 1.0],
        (0, 2): [0.5, 1.0],
        (1, 0): [1.0, 0.0],
        (1, 2): [0.5, 0.0],
        (2, 0): [0.5, 0.0],
        (2, 1): [0.5, 0.0],
    }


def test_a_centre_is_weighted_by_length_and_a_road_without_length_lies_at_its_point(workplace: Path) -> None:
    polylines = ["[[0, 0], [4, 0], [4, 2]]", "[[7, 1], [7, 1], [7, 1]]", "[[0, 0], [0, 0], [1, 1], [1, 1]]"]
    network = read_road_network(write_roads(workplace, polylines))
    np.testing.assert_allclose(network.center, [[(4 * 2 + 2 * 4) / 6, (4 * 0 + 2 * 1) / 6], [7, 1], [0.5, 0.5]])
    assert np.isfinite(network.reach_heading).all()


def test_roads_that_do_not_differ_have_zero_features(workplace: Path) -> None:
    network = read_road_network(write_roads(workplace, ["[[1, 1], [2, 2]]"] * 3))
    for feature in (network.road_attr_len, network.road_attr_lon, network.road_attr_lat):
        assert feature.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("highways", "classes", "ids"),
    [
        (["trunk", "primary", " trunk "], ["primary", "trunk"], [1, 0, 1]),
        (["10", "9", "2", "10"], ["2", "9", "10"], [2, 1, 0, 2]),
        (["10", "9", "link"], ["10", "9", "link"], [0, 1, 2]),
        (["-1", "3", "-2"], ["-2", "-1", "3"], [1, 2, 0]),
        (["['unclassified', 'primary']", "primary"], ["primary"], [0, 0]),
        (["['trunk', 'primary']", "unclassified"], ["trunk", "unclassified"], [0, 1]),
        (["['unclassified', 'unclassified']", '["unclassified"]'], ["unclassified"], [0, 0]),
    ],
)
def test_highway_classes(highways: list[str], classes: list[str], ids: list[int], workplace: Path) -> None:
    """Names sort as text, a whole column of codes by value; of a list counts the first that is classified."""
    network = read_road_network(write_roads(workplace, chain(len(highways)), highways=highways))
    assert list(network.highway_classes) == classes
    assert network.road_attr_type.tolist() == ids


def test_a_road_network_is_read_the_same_however_the_files_are_laid_out(mini_city: Path, workplace: Path) -> None:
    plain = read_road_network(mini_city)
    other = workplace / "other"
    for name in ("roadmap.geo", "roadmap.rel"):
        lines = (mini_city / name).read_text().splitlines()
        write_lines(other / name, "\ufeffextra," + lines[0], *('"a,b",' + line for line in lines[1:]), "", end="\r\n")
    again = read_road_network(other)
    for name, value in vars(plain).items():
        np.testing.assert_array_equal(getattr(again, name), value)


# Zones ---------------------------------------------------------------------------------------------------------


def transitions_by_hand(folder: Path) -> np.ndarray:
    """What `zone_trans_mat.npy` means, in plain loops."""
    zone = [int(line) for line in (folder / "road_network_partition").read_text().split()]
    counts = np.zeros((max(zone) + 1, max(zone) + 1), dtype=np.int64)
    for text in re.findall(r'"(\[?\d[\d, ]*\]?)","', (folder / "train.csv").read_text()):
        roads = json.loads(text if text.startswith("[") else f"[{text}]")
        for before, after in pairwise(roads):
            counts[zone[before], zone[after]] += zone[before] != zone[after]
    return counts


@pytest.mark.parametrize(
    "absent",
    [["road_network_partition", "zone_trans_mat.npy"], ["road_network_partition"], ["zone_trans_mat.npy"]],
    ids=["both", "partition", "matrix"],
)
def test_absent_zone_files_are_computed_once_and_written(absent: list[str], mini_city: Path, config: Config) -> None:
    published = contents(mini_city)
    for name in absent:
        (mini_city / name).unlink()
    first = load_city("Mini", config).features
    written = contents(mini_city)
    second = load_city("Mini", config).features
    assert contents(mini_city) == written
    assert set(written) == set(published)
    assert (first.road2zone == second.road2zone).all()
    assert torch.equal(first.zone_edge_weight, second.zone_edge_weight)
    if "road_network_partition" in absent:
        assert np.bincount(first.road2zone).max() <= 16  # balanced: 121 roads in 8 zones
    np.testing.assert_array_equal(np.load(mini_city / "zone_trans_mat.npy"), transitions_by_hand(mini_city))
    if absent == ["zone_trans_mat.npy"]:
        assert written == published


def test_zones_are_computed_the_same_each_time(mini_city: Path) -> None:
    network = read_road_network(mini_city)
    assert (partition_roads(network, 8) == partition_roads(network, 8)).all()


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
@pytest.mark.parametrize("last_end", [True, False])
def test_a_partition_may_end_with_a_line_end_or_not(end: str, last_end: bool, workplace: Path) -> None:
    path = write_lines(workplace / "road_network_partition", "1", "0", "2", end=end)
    if not last_end:
        path.write_bytes(path.read_bytes().removesuffix(end.encode()))
    assert read_partition(path, 3, 3).tolist() == [1, 0, 2]


ODD_NETWORKS = {
    "no relations but one": (50, [(0, 1)], 8),
    "only loops": (50, [(i, i) for i in range(50)], 8),
    "half of the roads alone": (60, [(i, i + 1) for i in range(30)], 8),
    "many components": (60, [(i, i + 1) for i in range(59) if (i + 1) % 5], 8),
    "a star": (60, [(0, i) for i in range(1, 60)], 8),
    "as many zones as roads": (40, [(i, (i + 1) % 40) for i in range(40)], 40),
    "two roads, two zones": (2, [(0, 1)], 2),
    "thousands alone": (5000, [(0, 1)], 300),
}


@pytest.mark.parametrize("name", ODD_NETWORKS)
def test_odd_networks_are_partitioned_all_the_same(name: str, workplace: Path) -> None:
    roads, relations, zones = ODD_NETWORKS[name]
    zone = partition_roads(read_road_network(write_roads(workplace, chain(roads), relations)), zones)
    assert zone.shape == (roads,)
    assert zone.min() >= 0
    assert zone.max() < zones


# Read-only data ------------------------------------------------------------------------------------------------


def test_a_read_only_folder_is_left_as_it_is_and_what_is_computed_is_kept_elsewhere(
    mini_city: Path, workplace: Path, config: Config
) -> None:
    archive = Path(shutil.move(mini_city, workplace / "archive"))
    for name in ("road_network_partition", "zone_trans_mat.npy"):
        (archive / name).unlink()
    before = contents(archive)
    archive.chmod(0o555)
    try:
        cities = [load_city("Mini", config, archive) for _ in range(2)]
        sizes = [[len(city.trips(split)) for split in ("train", "val", "test")] for city in cities]
        names = {path.name for path in archive.iterdir()}
    finally:
        archive.chmod(0o755)
    assert sizes == [[120, 40, 30]] * 2
    assert (cities[0].features.road2zone == cities[1].features.road2zone).all()
    assert names == set(before)  # no .cache either
    assert contents(archive) == before
    (kept,) = (workplace / "data" / ".cache").iterdir()
    assert {"road_network_partition", "zone_trans_mat.npy"} < {path.name for path in kept.iterdir()}


def test_a_city_may_lie_anywhere_and_bear_any_name(mini_city: Path, workplace: Path, config: Config) -> None:
    plain = load_city("Mini", config)
    odd = Path(shutil.copytree(mini_city, workplace / "a b\nc-ü"))
    moved = load_city("Mini", config, odd)
    assert as_lists(moved.trips("val")) == as_lists(plain.trips("val"))


def test_the_last_line_of_roadmap_geo_counts_also_without_a_line_end(mini_city: Path) -> None:
    path = mini_city / "roadmap.geo"
    replace_line(path, 122, '120,LineString,1,"[[1, 1], [2, 2]]",5,primary')
    path.write_bytes(path.read_bytes().rstrip())
    assert read_road_network(mini_city).center[120].tolist() == [1.5, 1.5]


def test_data_that_changes_while_it_is_read_is_an_error_and_not_kept(
    mini_city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the cache of one content would hold another, for all later runs."""

    def read_and_change(read):
        def changed(path: Path, *arguments: Any) -> Any:
            result = read(path, *arguments)
            file = path / "roadmap.rel" if path.is_dir() else path
            file.write_bytes(file.read_bytes()[:-1])
            return result

        return changed

    network = read_road_network(mini_city)
    monkeypatch.setattr("utils.data.cache.read_road_network", read_and_change(read_road_network))
    monkeypatch.setattr("utils.data.cache.parse_trips", read_and_change(parse_trips))
    again = "has changed while it was read; run the command again"
    assert error_of(load_network, mini_city) == f"data/Mini: {again}"
    assert error_of(load_trips, mini_city, "val", network, "error") == f"data/Mini/val.csv: {again}"
    assert not list(mini_city.glob(".cache/*.pt"))
