"""A user's mistake ends in one line that says what is wrong and what to do; nothing on the disk is lost."""

# ruff: noqa: E501 - a table of messages is read best with one case in a line

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    append_line,
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
from scripts import mini, run

from models.hoser import HOSER
from utils.config import Config, load_config
from utils.data.dataset import find_folder, load_city
from utils.data.loader import make_loaders
from utils.data.road_network import RoadNetwork, read_road_network
from utils.data.trips import read_trips
from utils.data.zones import ZONE_KEY, partition_roads, read_partition, read_transitions
from utils.errors import UserError
from utils.files.atomic import atomic_copy, atomic_write
from utils.files.tensor_files import save_tensors, state_dict_of
from utils.runtime.device import choose_device
from utils.training.weights import load_model

SKIP_HINT = "; --set data.on_bad_trip=skip leaves such trips out"


def mini_config(*overrides: str) -> Config:
    return load_config(overrides=[f"{ZONE_KEY}=8", *overrides])


# Finding the data ----------------------------------------------------------------------------------------------

WHERE_FROM = (
    "The public data sets are at Hugging Face, dataset caoji2001/HOSER-dataset: place their files there, "
    "or name another folder with --data_dir. --dataset Demo runs without a download"
)


def test_an_unknown_data_set_is_told_where_data_sets_are_to_be_had(workplace: Path) -> None:
    assert error_of(find_folder, "Atlantis") == (
        "data/Atlantis: no such folder; it needs roadmap.geo, roadmap.rel, train.csv, val.csv, test.csv. " + WHERE_FROM
    )


def test_exactly_the_files_that_are_missing_are_listed(mini_city: Path) -> None:
    (mini_city / "roadmap.rel").unlink()
    (mini_city / "test.csv").unlink()
    (mini_city / "test.csv").mkdir()
    assert error_of(find_folder, "Mini") == f"data/Mini: missing roadmap.rel, test.csv. {WHERE_FROM}"


def test_zone_files_are_not_missing_since_they_can_be_computed(mini_city: Path) -> None:
    (mini_city / "road_network_partition").unlink()
    assert find_folder("Mini") == Path("data/Mini")


@pytest.mark.parametrize("name", ["loop", "a" * 300, "file", "file/below", "", "a\0b", "a\nb", "\udcff"])
def test_a_folder_that_cannot_be_one_is_missing(name: str, workplace: Path) -> None:
    (workplace / "file").touch()
    (workplace / "loop").symlink_to("loop")
    assert "roadmap.geo, roadmap.rel, train.csv, val.csv, test.csv. " in error_of(find_folder, "Any", name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../Mini", "/tmp", "a/b", "a\\b", "a\0b", "a\nb", "-x", ".x", "Mini ", " Mini", "a" * 101]
)
def test_a_name_that_would_lead_out_of_the_folders_is_refused(name: str, mini_city: Path) -> None:
    for data_dir in (None, mini_city):
        assert error_of(find_folder, name, data_dir).startswith(f"--dataset {name!r}: expected the name of a folder ")


# roadmap.geo and roadmap.rel -----------------------------------------------------------------------------------


def geo_error(folder: Path, **columns: list[str]) -> str:
    polylines = columns.pop("polylines", chain(3))
    return error_of(read_road_network, write_roads(folder, polylines, **columns)).removeprefix("roadmap.geo, ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "LINESTRING(1 2, 3 4)",
        "[[1, 2], [3, 4",
        "[]",
        "[[1, 2]]",
        "[[1, 2, 0], [3, 4, 0]]",
        "[[1], [3, 4]]",
        "[[NaN, 2], [3, 4]]",
        "[[1, 2], [3, Infinity]]",
        "[[180.5, 2], [3, 4]]",
        "[[1, 90.5], [3, 4]]",
        "[[1, 1e999], [3, 4]]",
        "[[null, 2], [3, 4]]",
        "[[true, 2], [3, 4]]",
        '[["1", "2"], ["3", "4"]]',
        "[12, 34]",
        '{"12": 1, "34": 2}',
    ],
)
def test_broken_coordinates_name_the_line_and_the_form(text: str, workplace: Path) -> None:
    assert geo_error(workplace, polylines=[*chain(2), text]) == (
        f"line 4: coordinates: found {text!r}, expected JSON [[lon, lat], ...] in degrees, two points or more"
    )


def test_deeply_nested_coordinates_are_an_error_too_and_shown_in_part(workplace: Path) -> None:
    message = geo_error(workplace, polylines=["[" * 100_000])
    assert message.startswith("line 2: coordinates: found '[[[[")
    assert len(message) < 250


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "12 m", "1e9"])
def test_a_length_that_is_none_is_refused(text: str, workplace: Path) -> None:
    expected = f"line 3: length: found {text!r}, expected metres, at least 0"
    assert geo_error(workplace, lengths=["1", text, "1"]) == expected


@pytest.mark.parametrize("text", ["", " ", "[]", "[1, 2]", "[{[]}]", "[" * 99 + "]"])
def test_a_highway_without_a_class_is_refused(text: str, workplace: Path) -> None:
    message = geo_error(workplace, highways=["primary", "primary", text])
    assert message.startswith(f"line 4: highway: found {text[:57]!r}"[:60])
    assert message.endswith(", expected a class, a code or a list of classes")


@pytest.mark.parametrize("text", ["7", "", "one", "01", "1.0"])
def test_road_ids_must_count_from_zero(text: str, workplace: Path) -> None:
    write_roads(workplace, chain(3))
    replace_line(workplace / "roadmap.geo", 3, f'{text},"{chain(1)[0]}",5,primary')
    assert error_of(read_road_network, workplace) == (
        f"roadmap.geo, line 3: geo_id: found {text!r}, expected 1 (0, 1, 2, ... in order)"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,3", "found roads 0 and 3, expected ids from 0 to 2 (roadmap.geo has 3 roads)"),
        ("-1,0", "found roads -1 and 0, expected ids from 0 to 2 (roadmap.geo has 3 roads)"),
        ("a,2", "found 'a, 2', expected two road ids"),
        ("1.0,2", "found '1.0, 2', expected two road ids"),
        (",2", "found ', 2', expected two road ids"),
        (" ,2", "found ' , 2', expected two road ids"),
        ("99999999999999999999,2", "found '99999999999999999999, 2', expected two road ids"),
        ('"1,2",0', "found '1,2, 0', expected two road ids"),
        ("0,1,2", "row 3: found 3 fields, expected 2 (is a list not in quotes?)"),
        ("0,1,", "row 3: found 3 fields, expected 2 (the last one is empty: a comma at the end of the row? remove it)"),
        ("0", "row 3: found 1 field, expected 2"),
    ],
)
def test_a_broken_relation_names_its_line(row: str, message: str, workplace: Path) -> None:
    write_roads(workplace, chain(3), [(0, 1), (1, 2)])
    append_line(workplace / "roadmap.rel", row)
    append_line(workplace / "roadmap.rel", "1,0")
    assert error_of(read_road_network, workplace) == f"roadmap.rel, line 4: {message}"


def test_files_without_rows_say_so(workplace: Path) -> None:
    write_roads(workplace, chain(3), [])
    assert error_of(read_road_network, workplace).startswith("roadmap.rel: no relations, so that no trip is possible; ")
    write_roads(workplace, [], [(0, 0)])
    assert error_of(read_road_network, workplace) == "roadmap.geo: no roads"


def test_a_missing_column_is_named_beside_those_that_are_there(workplace: Path) -> None:
    write_roads(workplace, chain(3))
    write_lines(workplace / "roadmap.rel", "origin,destination_id", "0,1")
    assert error_of(read_road_network, workplace) == (
        "roadmap.rel, line 1: column origin_id is missing (found: origin, destination_id)"
    )


# Split files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,1", None),
        ("0,1,2015-11-05T08:00:00Z,2015-11-05T08:00:01Z", None),
        (trip("0,4"), "position 2: found road 4, expected ids from 0 to 3"),
        (trip("-1,0"), "position 1: found road -1, expected ids from 0 to 3"),
        (trip("0,1,4,2,9"), "position 3: found road 4, expected ids from 0 to 3"),
        (trip("0,1,2,0"), "positions 3 and 4: roadmap.rel does not connect road 2 to road 0"),
        (trip("0,0"), "positions 1 and 2: roadmap.rel does not connect road 0 to road 0"),
        (trip("3,2"), "positions 1 and 2: roadmap.rel does not connect road 3 to road 2"),
        (trip("0,1,2", time_list(2)), "rid_list has 3 entries and time_list 2, expected as many"),
        (trip("0,1", time_list(3)), "rid_list has 2 entries and time_list 3, expected as many"),
        (trip("0,1", time_list(2) + ","), "rid_list has 2 entries and time_list 3, expected as many"),
        (trip("0,1", ""), "rid_list has 2 entries and time_list 0, expected as many"),
        (trip("", time_list(2)), "rid_list has 0 entries and time_list 2, expected as many"),
        (
            trip("0,1", "2015-11-05T08:00:00+08:00,2015-11-05T08:00:09+09:00"),
            "time_list: found '2015-11-05T08:00:00+08:00' and '2015-11-05T08:00:09+09:00', expected one offset for all "
            "times of a trip",
        ),
        (trip("0,1", "now,then"), "time_list: found 'now', expected a time such as 2015-11-05T08:01:14Z"),
        (
            trip("0,1,2", "2015-11-05T08:00:00Z,2015-11-05T08:00:09Z,2015-11-05T08:00:08Z"),
            "time_list runs backwards after position 2",
        ),
        (trip("1"), "rid_list has 1 road, expected 2 or more"),
        (trip("[1]"), "rid_list has 1 road, expected 2 or more"),
        (trip("", ""), "rid_list has 0 roads, expected 2 or more"),
        (trip("[]", "[]"), "rid_list has 0 roads, expected 2 or more"),
        (trip("0,,1"), "rid_list: found '', expected road ids such as 1,2,3"),
        (trip("0, ,1"), "rid_list: found '', expected road ids such as 1,2,3"),
        (trip("0,1,"), "rid_list: found '', expected road ids such as 1,2,3"),
        (trip("0 1"), "rid_list: found '0 1', expected road ids such as 1,2,3"),
        (trip("0,1.5"), "rid_list: found '1.5', expected road ids such as 1,2,3"),
        (trip("0;1"), "rid_list: found '0;1', expected road ids such as 1,2,3"),
        (trip("[0,1"), "rid_list: found '[0', expected road ids such as 1,2,3"),
        (trip("'0','1'"), "rid_list: found \"'0'\", expected road ids such as 1,2,3"),
        (trip("0,٣"), "rid_list: found '٣', expected road ids such as 1,2,3"),
        (trip("0\xa0,1"), "rid_list: found '0', expected road ids such as 1,2,3"),
        (trip("0,99999999999999999999"), "rid_list: found '99999999999999999999', expected road ids such as 1,2,3"),
        (trip("None"), "rid_list: found 'None', expected road ids such as 1,2,3"),
    ],
)
def test_a_malformed_trip_names_file_line_trip_and_what_was_found(
    row: str, message: str | None, network: RoadNetwork, workplace: Path
) -> None:
    """The same message in the middle of good trips, at the end, and alone."""
    if message is None:
        where, message = "row", f"found {row.count(',') + 1} fields, expected 2 (is a list not in quotes?)"
    else:
        where = "trip"
    if row == "0,1":
        row, message = "0", "found 1 field, expected 2"
    for before, after in ((2, 2), (1, 0), (0, 0)):
        path = write_trips(workplace / "t.csv", *[trip("0,1")] * before, row, *[trip("0,1,2")] * after)
        hint = SKIP_HINT if before + after else ""  # where skipping would leave nothing, it is no advice
        expected = f"t.csv, line {before + 2}: {where} {before + 1}: {message}{hint}"
        assert error_of(read_trips, path, network) == expected


def test_the_first_of_several_malformed_trips_is_named_whatever_is_wrong_with_them(
    network: RoadNetwork, workplace: Path
) -> None:
    bad = [trip("0,9"), trip("0,1", "x,y"), trip("0,2"), "1", trip("1"), trip("x")]
    for i in range(len(bad)):
        path = write_trips(workplace / "t.csv", trip("0,1"), *bad[i:], *bad[:i])
        assert error_of(read_trips, path, network).startswith("t.csv, line 3: ")


def test_a_line_number_counts_lines_of_the_file_and_a_trip_number_trips(network: RoadNetwork, workplace: Path) -> None:
    path = write_trips(workplace / "t.csv", "", trip("0,\n1"), "", trip("0,2"))
    assert error_of(read_trips, path, network).startswith("t.csv, line 6: trip 2: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv, line 1: column rid_list, time_list is missing (found: none)"),
        (
            b"rid_list;time_list\n0;1\n",
            "t.csv, line 1: column rid_list, time_list is missing (found: rid_list;time_list); columns are separated by "
            "';', expected commas",
        ),
        (b'"a\nb"\n', "t.csv, line 1: column rid_list, time_list is missing (found: a b)"),
        (b"rid_list,time_list", "t.csv: no trips"),
        (b"rid_list,time_list\n\n\n", "t.csv: no trips"),
        (
            b"rid_list,time_list\n\xe9,1\n",
            "t.csv, line 2: not UTF-8 text (byte 19): it is in another encoding (GBK, Latin-1, ...) or damaged; save it as UTF-8",
        ),
        (
            b"rid_list,time_list\n\0",
            "t.csv, line 2: the file ends within this row: incomplete download? (row 1: found 1 field, expected 2); fetch "
            "it again",
        ),
    ],
)
def test_a_file_that_is_no_table_of_trips_is_refused(
    content: bytes, message: str, network: RoadNetwork, workplace: Path
) -> None:
    (workplace / "t.csv").write_bytes(content)
    assert error_of(read_trips, workplace / "t.csv", network) == message


def test_a_file_of_malformed_trips_only_is_an_error_also_when_they_are_skipped(
    network: RoadNetwork, workplace: Path
) -> None:
    path = write_trips(workplace / "t.csv", trip("0,2"), trip("x"))
    assert error_of(read_trips, path, network, "skip") == (
        "t.csv: no trips but malformed ones (line 2: trip 1: positions 1 and 2: "
        "roadmap.rel does not connect road 0 to road 2)"
    )


def test_a_trip_longer_than_the_model_allows_says_which_key_to_raise(mini_city: Path) -> None:
    config = mini_config("trajectory_encoder_config.max_len=12")
    assert error_of(make_loaders, load_city("Mini", config), config, "cpu") == (
        "data/Mini/train.csv, line 93: trip 92: 13 roads before the destination, expected at most 12; raise "
        "trajectory_encoder_config.max_len; --set data.on_bad_trip=skip leaves such trips out"
    )


# Zones ---------------------------------------------------------------------------------------------------------

RECOMPUTE = "delete the file to have it computed again"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0 1", f": found 2 lines, expected 3 (one zone for each road of roadmap.geo); {RECOMPUTE}"),
        ("0 1 2 0", f": found 4 lines, expected 3 (one zone for each road of roadmap.geo); {RECOMPUTE}"),
        ("", f": found 0 lines, expected 3 (one zone for each road of roadmap.geo); {RECOMPUTE}"),
        ("0 x 1", ", line 2: found 'x', expected a zone id"),
        ("0 1 -", ", line 3: found '-', expected a zone id"),
        ("0 1.0 1", ", line 2: found '1.0', expected a zone id"),
        ("0 1,2 1", ", line 2: found '1,2', expected a zone id"),
        ("٣ 1 1", ", line 1: found '٣', expected a zone id"),
        ("0 1 99999999999999999999", ", line 3: found '99999999999999999999', expected a zone id"),
        ("0 -1 1", f", line 2: found zone -1, expected zone ids of 0 or more; {RECOMPUTE}"),
        (
            "0 1 8",
            f", line 3: found zone 8, but {ZONE_KEY} is 8 (zones 0 to 7): set it to 9, the zones of this file, or {RECOMPUTE}",
        ),
        (
            "9 1 8",
            f", line 1: found zone 9, but {ZONE_KEY} is 8 (zones 0 to 7): set it to 10, the zones of this file, or {RECOMPUTE}",
        ),
    ],
)
def test_a_partition_that_does_not_fit_is_refused(lines: str, message: str, workplace: Path) -> None:
    path = write_lines(workplace / "road_network_partition", *lines.split())
    assert error_of(read_partition, path, 3, 8) == f"road_network_partition{message}"


COUNTS = np.arange(9).reshape(3, 3)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (COUNTS[:2, :2], "found an array of 2 x 2 counts, expected 3 x 3 "),
        (COUNTS[:2], "found an array of 2 x 3 counts, expected 3 x 3 "),
        (COUNTS.ravel(), "found an array of 9 counts, expected 3 x 3 "),
        (
            np.zeros((9, 9)),
            "found an array of 9 x 9 counts, expected 3 x 3 (zones of road_network_partition; at most 8 x 8)",
        ),
        (np.int64(3), "found an array of no counts, expected 3 x 3 "),
        (-COUNTS, "found entries that are no counts, expected numbers of 0 or more"),
        (COUNTS * np.nan, "found entries that are no counts"),
        (COUNTS > 0, "found entries that are no counts"),
        (COUNTS.astype(complex), "found entries that are no counts"),
        (COUNTS.astype(str), "found entries that are no counts"),
        (COUNTS.astype(object), "not a NumPy array file ("),
    ],
)
def test_transitions_of_another_shape_or_kind_are_refused(array: np.ndarray, found: str, workplace: Path) -> None:
    path = workplace / "zone_trans_mat.npy"
    np.save(path, array, allow_pickle=True)
    message = error_of(read_transitions, path, np.array([0, 1, 2]), 8)
    assert message.startswith(f"zone_trans_mat.npy: {found}")
    assert message.endswith(f"; {RECOMPUTE}")


def test_a_damaged_file_of_transitions_is_refused_wherever_it_is_damaged(workplace: Path) -> None:
    """Cut short at each length, and each byte of the header replaced: an error or an array, never a crash."""
    path = workplace / "zone_trans_mat.npy"
    np.save(path, COUNTS)
    sound = path.read_bytes()
    for length in range(0, len(sound), 3):
        path.write_bytes(sound[:length])
        assert error_of(read_transitions, path, np.array([0, 1, 2]), 8).startswith("zone_trans_mat.npy: ")
    refused = 0
    for place in range(128):
        for new in b"\0('{9\xff":
            path.write_bytes(sound[:place] + bytes([new]) + sound[place + 1 :])
            try:
                assert read_transitions(path, np.array([0, 1, 2]), 8).shape == (3, 3)
            except UserError:
                refused += 1
    assert refused > 300


def test_more_zones_than_roads_says_which_key_to_lower(mini_city: Path) -> None:
    config = load_config(overrides=[f"{ZONE_KEY}=122"])
    for name in ("road_network_partition", "zone_trans_mat.npy"):
        (mini_city / name).unlink()
    assert error_of(load_city, "Mini", config) == (
        f"{ZONE_KEY}: found 122, expected at most 121 (the network has 121 roads); lower it with --set {ZONE_KEY}=N"
    )
    assert error_of(partition_roads, read_road_network(mini_city), 122).startswith(f"{ZONE_KEY}: found 122, ")


@pytest.mark.parametrize(("key", "found"), [("road_id_num_embeddings", 121), ("type_num_embeddings", 6)])
def test_a_size_that_the_file_fixes_must_be_that_of_the_data(key: str, found: int, mini_city: Path) -> None:
    load_city("Mini", mini_config(f"road_network_encoder_config.{key}={found}"))
    expected = f"road_network_encoder_config.{key}: found 7, expected {found} as in roadmap.geo (or nothing)"
    assert error_of(load_city, "Mini", mini_config(f"road_network_encoder_config.{key}=7")) == expected


# Devices and checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [9, 1000, -2])
def test_a_gpu_that_is_not_there_is_refused(number: int) -> None:
    if 0 <= number < torch.cuda.device_count():
        pytest.skip("this machine has that many GPUs")
    assert error_of(choose_device, number).startswith(f"--cuda {number}: this machine has ")


@pytest.fixture
def model(mini_city: Path) -> HOSER:
    config = mini_config()
    return HOSER(config, load_city("Mini", config).features)


DOES_NOT_FIT = "x.pth: does not fit this model and data: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {**state, "surplus": torch.zeros(1)},
            DOES_NOT_FIT + 'Unexpected key(s) in state_dict: "surplus"',
        ),
        (
            lambda state: {"first": state, "second": state},
            "x.pth: found several sets of weights (first, second), expected a state dict of HOSER (names and tensors)",
        ),
        (
            lambda state: {1: torch.zeros(1)},
            "x.pth: found dict (1), expected a state dict of HOSER (names and tensors)",
        ),
        (lambda state: torch.zeros(3), "x.pth: found Tensor, expected a state dict of HOSER (names and tensors)"),
        (
            lambda state: {"a": Path("b")},
            "x.pth: holds more than tensors and plain values; it is not loaded, since it could run any code",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: Callable[[dict], object], message: str, model: HOSER, workplace: Path
) -> None:
    path = workplace / "x.pth"
    save_tensors(state_dict_of(model), path)
    load_model(model, path)
    save_tensors(change(state_dict_of(model)), path)
    found = error_of(load_model, model, path)
    assert found.startswith(message)
    assert len(found) < 500
    assert found.isprintable()


def test_a_damaged_checkpoint_is_refused_wherever_a_bit_flips(model: HOSER, workplace: Path) -> None:
    path = workplace / "x.pth"
    save_tensors({"weights": torch.arange(300.0)}, path)
    sound, (start, stop) = path.read_bytes(), (0, 0)
    start = sound.index(torch.arange(1.0, 9.0).numpy().tobytes())
    stop = start + 1196
    for place in range(start, stop, 13):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        assert error_of(load_model, model, path).startswith("x.pth: damaged (checksum of ")
    for length in (0, 1, 100, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:length])
        assert error_of(load_model, model, path).startswith("x.pth: not a file of tensors saved by torch, or damaged")


def test_a_checkpoint_that_is_not_there_is_named(model: HOSER, workplace: Path) -> None:
    assert error_of(load_model, model, workplace / "save" / "best.pth") == "save/best.pth: no such file"


# Writing -------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_other(workplace: Path) -> None:
    path = write_lines(workplace / "f", "old")

    def write_and_fail(file) -> None:
        file.write(b"new")
        raise OSError(28, "No space left on device")

    assert error_of(atomic_write, path, write_and_fail) == (
        "f: cannot be written (OSError: [Errno 28] No space left on device); what was there before is unchanged; use "
        "distillation training, which stores one checkpoint only; or delete old epoch checkpoints: "
        "rm save/*/seed*/epoch_*.pth; or make more disk space available"
    )
    assert contents(workplace) == {"f": b"old\n"}


@pytest.mark.parametrize("name", ["file/f", "folder"])
def test_a_target_that_cannot_be_written_is_named(name: str, workplace: Path) -> None:
    write_lines(workplace / "file", "old")
    (workplace / "folder").mkdir()
    assert error_of(atomic_copy, workplace / "file", workplace / name).startswith(
        f"{name}: cannot be written (OSError: [Errno "
    )
    assert contents(workplace) == {"file": b"old\n"}


# Whole processes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """Something done wrong to the project folder or on the command line, and what the error must hold."""

    make: Callable[[Path], object]
    expected: str
    arguments: tuple[str, ...] = ()
    script: str = "train.py"


def occupy_save(project: Path) -> None:
    shutil.rmtree(project / "save")
    (project / "save").write_text("a file")


def protect_save(project: Path) -> None:
    (project / "save" / "Mini" / "seed0").chmod(0o555)


def save_of_another_size(project: Path) -> None:
    save_tensors({"navigator.v_proj.weight": torch.zeros(7)}, project / "other.pth")


MINI = Path("data") / "Mini"
MISTAKES = {
    "unknown data set": Mistake(
        lambda p: shutil.rmtree(p / MINI), "data/Mini: no such folder; it needs roadmap.geo, roadmap.rel, train.csv"
    ),
    "malformed row": Mistake(
        lambda p: append_line(p / MINI / "train.csv", "1,2,3"), "data/Mini/train.csv, line 122: row 121: found 3 fields"
    ),
    "roads that are not connected": Mistake(
        lambda p: append_line(p / MINI / "test.csv", "1,2,3," + trip("0,46,0")),
        "data/Mini/test.csv, line 32: trip 31: positions 2 and 3: roadmap.rel does not connect road 46 to road 0; --set",
    ),
    "empty split": Mistake(lambda p: write_trips(p / MINI / "val.csv"), "data/Mini/val.csv: no trips"),
    "broken coordinates": Mistake(
        lambda p: replace_line(p / MINI / "roadmap.geo", 9, '7,LineString,1,"[12, 34]",5,primary'),
        "data/Mini/roadmap.geo, line 9: coordinates: found '[12, 34]', expected JSON",
    ),
    "partition of another length": Mistake(
        lambda p: append_line(p / MINI / "road_network_partition", "0"),
        "data/Mini/road_network_partition: found 122 lines, expected 121",
    ),
    "YAML that does not parse": Mistake(
        lambda p: append_line(p / "Mini.yaml", "a: b: c"), "Mini.yaml: line 19, column 5: not valid YAML"
    ),
    "value out of range": Mistake(
        lambda p: None,
        "optimizer_config.max_epoch: found 0, expected at least 1",
        ("--set", "optimizer_config.max_epoch=0"),
    ),
    "GPU that is not there": Mistake(lambda p: None, "--cuda 9: this machine has ", ("--cuda", "9")),
    "save is a file": Mistake(occupy_save, "save/Mini/seed0: cannot be written ("),
    "save is read-only": Mistake(protect_save, "save/Mini/seed0: cannot be written ("),
    "checkpoint that does not fit": Mistake(
        save_of_another_size,
        "other.pth: does not fit this model and data: ",
        ("--checkpoint", "other.pth"),
        "tools/evaluate.py",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line_and_leaves_everything_as_it_was(name: str, project: Path) -> None:
    mistake = MISTAKES[name]
    run_folder = project / "save" / "Mini" / "seed0"
    for file in ("epoch_1.pth", "best.pth"):
        write_lines(run_folder / file, "of an earlier run")
    mistake.make(project)
    before = contents(project)
    try:
        process = run(mini(mistake.script, *mistake.arguments), project)
    finally:
        if run_folder.is_dir():
            run_folder.chmod(0o755)
    lines = process.stderr.splitlines()
    assert process.returncode == 1, process.stderr
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], process.stderr
    assert mistake.expected in lines[-1]
    after = contents(project)
    assert {path: after.get(path) for path in before} == before
    new = [path for path in after.keys() - before.keys() if not path.startswith(("log/", "tensorboard_log/"))]
    assert [path for path in new if not path.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1"], "the following arguments are required: --dataset"),
        (
            ["--dataset", "Mini", "--seed", "x"],
            "argument --seed: found 'x', expected a whole number from 0 to 4294967295",
        ),
    ],
)
def test_bad_arguments_end_with_exit_code_2_and_leave_everything_as_it_was(
    arguments: list[str], message: str, project: Path
) -> None:
    before = contents(project)
    process = run(["train.py", *arguments], project)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == f"train.py: error: {message}"
    assert contents(project) == before


def test_malformed_trips_can_be_skipped_and_are_reported(project: Path) -> None:
    for row in ("1,2,3", "1,2,3," + trip("0,46,121")):
        append_line(project / MINI / "train.csv", row)
    process = run(mini("tools/prepare_dataset.py", "--set", "data.on_bad_trip=skip"), project)
    assert process.returncode == 0, process.stderr
    report = "data/Mini/train.csv: skipped 2 malformed trips of 122 (the first: line 122: row 121: found 3 fields"
    assert report in process.stderr
    assert "trips: 120 train, 40 val, 30 test" in process.stderr


def test_a_file_that_cannot_be_read_is_named(network: RoadNetwork, workplace: Path) -> None:
    (workplace / "t.csv").mkdir()  # unreadable for root too
    assert error_of(read_trips, workplace / "t.csv", network) == "t.csv: cannot be read (Is a directory)"
