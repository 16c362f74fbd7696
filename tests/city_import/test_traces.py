"""Traces are read in the forms that they come in; what is wrong with them is told by file and line."""

from pathlib import Path

import numpy as np
import pytest
from helpers import error_of, write_lines

from utils.city_import.moments import time_zone
from utils.city_import.trace_columns import FMM, PORTO, find_format, parse_columns
from utils.city_import.traces import Traces, read_traces

EIGHT = 1446710400.0  # 2015-11-05T08:00:00Z


def read(path: Path, columns: str = "", skip: bool = False, zone: str = "") -> Traces:
    """The traces of a file."""
    form = find_format(path, parse_columns(columns) if columns else {})
    return read_traces(path, form, skip, time_zone(zone) if zone else None, path.parent / "work")


def rows_of(traces: Traces, trip: int) -> list[list[float]]:
    """Time, longitude and latitude of the fixes of a trip."""
    return np.array(traces.fixes[traces.ptr[trip] : traces.ptr[trip + 1]]).tolist()


@pytest.mark.parametrize(
    "time",
    ["2015-11-05T08:00:00Z", "2015-11-05 08:00:00", "2015-11-05T08:00:00.250+01:00", "1446710400", "1446710400.0"],
)
def test_times_have_the_forms_of_trip_files_or_are_epoch_seconds(tmp_path: Path, time: str) -> None:
    path = write_lines(tmp_path / "a.csv", "trip_id,time,lon,lat", f"A,{time},10.5,50.5")
    traces = read(path)
    assert (traces.names, rows_of(traces, 0)) == (["A"], [[EIGHT, 10.5, 50.5]])


def test_rows_of_a_trip_may_lie_anywhere_and_forms_may_mix(tmp_path: Path) -> None:
    lines = ["B,2015-11-05T08:00:00Z,1,2", "A,1446710401,3,4", "B,2015-11-05 08:00:05+00:00,5,6", "A,1446710406,7,8"]
    traces = read(write_lines(tmp_path / "a.csv", "trip,timestamp,lng,latitude", *lines))
    assert traces.names == ["B", "A"]
    assert rows_of(traces, 0) == [[EIGHT, 1, 2], [EIGHT + 5, 5, 6]]
    assert rows_of(traces, 1) == [[EIGHT + 1, 3, 4], [EIGHT + 6, 7, 8]]


def test_two_users_may_number_their_trips_alike(tmp_path: Path) -> None:
    lines = [
        "1,,1446710400,1,2",
        "1,a,1446710401,1,2",
        "1,b,1446710400,3,4",
        "1,a,1446710402,1,2",
        "1,b,1446710401,3,4",
    ]
    traces = read(write_lines(tmp_path / "a.csv", "trip_id,user_id,time,lon,lat", *lines))
    assert (traces.names, traces.users, traces.ptr.tolist()) == (["1", "1"], ["a", "b"], [0, 3, 5])


@pytest.mark.parametrize("columns", ["trip=Fahrt,time=Zeit,longitude=X,latitude=Y,user=Wer", "Fahrt, Zeit, X, Y, Wer"])
def test_columns_can_be_named(tmp_path: Path, columns: str) -> None:
    path = write_lines(tmp_path / "a.csv", "Y;X;Zeit;Wer;Fahrt", "50.5;10.5;2015-11-05T08:00:00Z;Eva;7")
    traces = read(path, columns)
    assert (traces.names, traces.users, rows_of(traces, 0)) == (["7"], ["Eva"], [[EIGHT, 10.5, 50.5]])


def test_epoch_seconds_are_read_by_the_clock_of_a_time_zone(tmp_path: Path) -> None:
    # The clocks of Lisbon go back in the night of 25 October 2015, at 01:00 UTC: the trip is no hour shorter.
    start = 1445734800 - 60
    lines = [f"A,{start},1,2", f"A,{start + 120},1,2", f"B,{start + 120},1,2", "C,2015-11-05T08:00:00Z,1,2"]
    traces = read(write_lines(tmp_path / "a.csv", "trip_id,time,lon,lat", *lines), zone="Europe/Lisbon")
    assert traces.fixes[:, 0].tolist() == [start + 3600, start + 3720, start + 120, EIGHT]


def test_porto_has_a_row_for_each_trip_with_a_fix_each_15_seconds(tmp_path: Path) -> None:
    header = '"TRIP_ID","CALL_TYPE","TAXI_ID","TIMESTAMP","MISSING_DATA","POLYLINE"'
    rows = [
        '"1","C","20000589","1446710400","False","[[-8.61,41.14],[-8.62,41.15]]"',
        '"2","B","20000596","1446710400","False","[]"',
        '"3","B","20000596","1446710400","True","[[-8.61,41.14]]"',
        '"1","C","20000589","1446714000","False","[[-8.63,41.16]]"',
    ]
    path = write_lines(tmp_path / "a.csv", header, *rows)
    assert find_format(path, {}).kind == PORTO
    traces = read(path)
    assert (traces.names, traces.users) == (["1", "1"], ["20000589", "20000589"])
    assert rows_of(traces, 0) == [[EIGHT, -8.61, 41.14], [EIGHT + 15, -8.62, 41.15]]
    assert traces.counts["trips without fixes"] == 1
    assert traces.counts["trips with missing fixes, by the file itself"] == 1
    path = write_lines(tmp_path / "b.csv", header.lower(), *rows)
    assert rows_of(read(path), 0) == rows_of(traces, 0)


def test_what_fmm_wrote_is_known_by_its_header(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.csv", "id;opath;cpath;timestamp", "1;2,3;2,3;1,2")
    assert (find_format(path, {}).kind, find_format(path, {}).separator) == (FMM, ";")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("A,yesterday,1,2", "time: found 'yesterday', expected 2015-11-05T08:01:14Z or seconds since 1970"),
        ("A,1446710400000,1,2", "milliseconds? divide them by 1000"),
        ("A,-5,1,2", "time: found '-5'"),
        ("A,1446710400,east,2", "longitude, latitude: found 'east', '2', expected degrees"),
        ("A,1446710400,1,95", "longitude, latitude: found '1', '95', expected degrees"),
        ("A,1446710400,nan,2", "longitude, latitude: found 'nan'"),
        (",1446710400,1,2", "the trip id is empty"),
        ("A,1446710400,1", "row 2: found 3 fields, expected 4"),
    ],
)
def test_a_malformed_row_is_named_or_skipped(tmp_path: Path, messages: list[str], row: str, expected: str) -> None:
    lines = ["B,1446710400,1,2", row, "B,1446710410,1,2"]
    path = write_lines(tmp_path / "a.csv", "trip_id,time,lon,lat", *lines)
    message = error_of(read, path)
    assert "a.csv, line 3: " in message and expected in message and "--on_bad_trip skip" in message
    traces = read(path, skip=True)
    assert (len(traces.fixes), traces.counts["malformed rows"]) == (2, 1)
    assert "skipped 1 malformed row (line 3: " in messages[0]


def test_a_trip_has_one_offset(tmp_path: Path) -> None:
    lines = ["A,2015-11-05T08:00:00+01:00,1,2", "A,2015-11-05T08:00:05+02:00,1,2"]
    path = write_lines(tmp_path / "a.csv", "trip_id,time,lon,lat", *lines)
    assert "line 3: time: found '2015-11-05T08:00:05+02:00', expected one offset" in error_of(read, path)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('"1","soon","[[1,2]]"', "TIMESTAMP: found 'soon'"),
        ('"1","1446710400","[[1,2],[3]]"', "POLYLINE: found '[[1,2],[3]]', expected [[longitude, latitude], ...]"),
        ('"1","1446710400","[[1,200]]"', "POLYLINE: found"),
        ('"1","1446710400","[1,2,3,4]"', "POLYLINE: found"),
        ('"1","1446710400","[[1,2,3],[4,5,6]]"', "POLYLINE: found"),
    ],
)
def test_a_malformed_trip_of_porto_is_named(tmp_path: Path, row: str, expected: str) -> None:
    path = write_lines(tmp_path / "a.csv", "TRIP_ID,TIMESTAMP,POLYLINE", row)
    assert f"line 2: {expected}" in error_of(read, path)


@pytest.mark.parametrize(
    ("header", "columns", "expected"),
    [
        ("a,b,c,d", "", "line 1: no column for the trip and the time and the longitude and the latitude"),
        ("trip_id,time,lon,lat", "trip=Nummer", "line 1: no column Nummer (found: trip_id, time, lon, lat)"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, header: str, columns: str, expected: str) -> None:
    path = write_lines(tmp_path / "a.csv", header, "1,2,3,4")
    assert expected in error_of(read, path, columns)


@pytest.mark.parametrize("text", ["trip", "trip=a,colour=b", "a,b,c", "a,b=c,d,e"])
def test_columns_that_make_no_sense_are_refused(text: str) -> None:
    assert "--columns: found" in error_of(parse_columns, text)


def test_a_file_without_fixes_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.csv", "trip_id,time,lon,lat")
    assert "no fixes" in error_of(read, path)
    path = write_lines(tmp_path / "b.csv", "trip_id,time,lon,lat", "A,x,1,2")
    assert "no fixes but 1 malformed rows (line 2: " in error_of(read, path, "", True)


def test_a_time_zone_that_is_none_is_refused() -> None:
    assert "expected a name such as Europe/Lisbon" in error_of(time_zone, "Lisbon/Portugal")
