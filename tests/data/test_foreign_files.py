"""Data files that are no data: each is named for what it is, with the remedy."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import error_of, time_list, trip, write_lines, write_trips

from utils.config import load_config
from utils.data.dataset import load_city
from utils.data.road_network import RoadNetwork, read_road_network
from utils.data.trips import read_trips
from utils.data.zones import ZONE_KEY, read_partition, read_transitions

TABLE = b"rid_list,time_list\n" + trip("0,1").encode() + b"\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train.csv", TABLE)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("train.csv"))
    return file.getvalue()


FILES = {
    "pointer": (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4' * 64}\nsize 23423423\n".encode(),
        "is a Git LFS pointer, not the file itself: install git-lfs and run `git lfs pull` where it was cloned",
    ),
    "page": (b"\n<!DOCTYPE html>\n<html><title>Sign in</title>", "is a web page, not the file: download it again"),
    "error of a store": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page, not the file"),
    "gzip": (gzip.compress(TABLE), "is a gzip file: unpack it with gunzip"),
    "bzip2": (bz2.compress(TABLE), "is a bzip2 file: unpack it with bunzip2"),
    "xz": (lzma.compress(TABLE), "is an xz file: unpack it with unxz"),
    "zip": (zipped(), "is a zip archive (or an Excel file): unpack it"),
    "tar": (tarred(), "is a tar archive: unpack it"),
    "parquet": (b"PAR1\x15\x04", "is a Parquet file: export it as CSV"),
    "UTF-16": (TABLE.decode().encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
    "UTF-16 without a mark": (TABLE.decode().encode("utf-16-le"), "is UTF-16 text: save it as UTF-8"),
    "UTF-32": (TABLE.decode().encode("utf-32"), "is UTF-32 text: save it as UTF-8"),
    "GBK": (
        "rid_list,time_list,路\n".encode("gbk") + trip("0,1").encode() + ",长安街\n".encode("gbk"),
        "not UTF-8 text (byte ",
    ),
    "Latin-1": (TABLE + trip("0,1").encode() + b",Rua S\xe3o Bento\n", "not UTF-8 text (byte "),
}


@pytest.mark.parametrize("name", FILES)
def test_every_reader_names_the_file_and_the_remedy(name: str, network: RoadNetwork, workplace: Path) -> None:
    content, words = FILES[name]
    paths = [workplace / n for n in ("train.csv", "roadmap.geo", "road_network_partition", "zone_trans_mat.npy")]
    for path in paths:
        path.write_bytes(content)
    errors = [
        error_of(read_trips, paths[0], network),
        error_of(read_road_network, workplace),
        error_of(read_partition, paths[2], 3, 8),
    ]
    for path, error in zip(paths, errors, strict=False):
        assert error.startswith(path.name) and words in error, error
    if name in ("pointer", "page", "gzip", "xz"):
        error = error_of(read_transitions, paths[3], None, 8)
        assert error.startswith(f"zone_trans_mat.npy: {words}")


# Cut off -----------------------------------------------------------------------------------------------------------

CUT = "the file ends within this row: incomplete download?"


def test_a_file_that_ends_within_a_row_says_so_wherever_it_ends(network: RoadNetwork, workplace: Path) -> None:
    """Each length: an error that says so, or all rows before, with a warning where the last one may not be whole."""
    row = trip("0,1,2")
    whole = write_trips(workplace / "t.csv", trip("0,1"), trip("1,2"), row).read_bytes()
    start = len(whole) - len(row) - 1
    for end in range(start + 1, len(whole) - 1):
        (workplace / "t.csv").write_bytes(whole[:end])
        error = error_of(read_trips, workplace / "t.csv", network)
        assert error.startswith("t.csv, line 4: "), error
        assert CUT in error, (whole[start:end], error)


def test_a_last_row_without_a_line_end_is_taken_where_it_is_whole(
    network: RoadNetwork, workplace: Path, messages: list[str]
) -> None:
    (workplace / "t.csv").write_bytes(TABLE.rstrip(b"\n"))
    assert len(read_trips(workplace / "t.csv", network)) == 1
    assert messages == []  # the closing quote shows that it is


def test_a_last_field_that_may_be_cut_is_told(mini_city: Path, messages: list[str]) -> None:
    path = mini_city / "roadmap.rel"
    path.write_bytes(path.read_bytes()[:-2])  # within the last number
    read_road_network(mini_city)
    lines = path.read_text().count("\n") + 1
    assert messages == [f"{path}, line {lines}: no line end follows; is the file whole?"]


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9])
def test_a_cut_off_download_of_each_file(share: float, mini_city: Path) -> None:
    for name in ("roadmap.geo", "train.csv", "val.csv", "test.csv"):
        path = mini_city / name
        content = path.read_bytes()
        end = int(share * len(content))
        while content[end - 1 : end] in (b"\n", b'"'):
            end -= 1
        path.write_bytes(content[:end])
        config = load_config(overrides=[f"{ZONE_KEY}=8", "data.on_bad_trip=skip"])

        def load() -> None:
            city = load_city("Mini", config)  # noqa: B023
            for split in ("train", "val", "test"):
                city.trips(split)

        message = error_of(load)
        assert message.startswith(f"data/Mini/{name}, line ")
        assert CUT in message
        path.write_bytes(content)


def test_skipping_bad_trips_does_not_skip_the_rest_of_a_cut_file(network: RoadNetwork, workplace: Path) -> None:
    content = write_trips(workplace / "t.csv", trip("0,1"), trip("1,2,3")).read_bytes()
    (workplace / "t.csv").write_bytes(content[:-30])  # within quotes
    assert CUT in error_of(read_trips, workplace / "t.csv", network, "skip")


def test_a_quote_within_a_field_is_not_the_end_of_a_file(network: RoadNetwork, workplace: Path) -> None:
    write_lines(
        workplace / "t.csv",
        "note,rid_list,time_list",
        *(f'a 5" pipe,"{rids}","{time_list(2)}"' for rids in ("0,1", "1,2", "2,3")),
    )
    assert len(read_trips(workplace / "t.csv", network)) == 3


# Separators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_named(separator: str, network: RoadNetwork, workplace: Path) -> None:
    write_lines(workplace / "t.csv", f"rid_list{separator}time_list", "1")
    assert error_of(read_trips, workplace / "t.csv", network).endswith(
        f"; columns are separated by {separator!r}, expected commas"
    )


def test_a_comma_at_the_end_of_each_row_is_named_and_in_the_header_too_it_is_no_matter(
    network: RoadNetwork, workplace: Path
) -> None:
    write_lines(workplace / "t.csv", "rid_list,time_list", trip("0,1") + ",", trip("1,2") + ",")
    assert error_of(read_trips, workplace / "t.csv", network) == (
        "t.csv, line 2: row 1: found 3 fields, expected 2 (the last one is empty: a comma at the end of the row? "
        "remove it)"
    )
    write_lines(workplace / "t.csv", "rid_list,time_list,", trip("0,1") + ",", trip("1,2") + ",")
    assert len(read_trips(workplace / "t.csv", network)) == 2
