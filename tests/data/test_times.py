"""Times in the forms that people have: what counts is the clock on the wall."""

from pathlib import Path

import numpy as np
import pytest
from helpers import error_of, trip, write_trips

from utils.data.loader import time_of_day
from utils.data.road_network import RoadNetwork
from utils.data.trips import read_trips

PLAIN = ("2015-11-05T23:59:58Z", "2015-11-06T00:00:07Z")


def times_of(network: RoadNetwork, folder: Path, *times: str) -> list[int]:
    return read_trips(write_trips(folder / "t.csv", trip("0,1", ",".join(times))), network).time_s.tolist()


@pytest.mark.parametrize(
    "form",
    [
        "{day}T{time}",
        "{day} {time}",
        "{day} {time}Z",
        "{day}t{time}z",
        "{day}T{time}.5Z",
        "{day}T{time}.999999",
        "{day} {time}.25+08:00",
        "{day}T{time}+08:00",
        "{day}T{time}-0330",
        "{day}T{time}+08",
        "{day} {time} +0000",
        "{day}T{time}+00:00",
    ],
)
def test_the_time_on_the_wall_is_kept_to_the_second(form: str, network: RoadNetwork, workplace: Path) -> None:
    plain = times_of(network, workplace, *PLAIN)
    times = [form.format(day=text[:10], time=text[11:19]) for text in PLAIN]
    assert times_of(network, workplace, *times) == plain


def test_a_list_may_quote_its_times(network: RoadNetwork, workplace: Path) -> None:
    """As pandas writes a list of texts."""
    plain = times_of(network, workplace, *PLAIN)
    assert times_of(network, workplace, f"['{PLAIN[0]}', '{PLAIN[1]}']") == plain


def test_forms_may_differ_from_trip_to_trip_and_within_one_where_the_clock_is_the_same(
    network: RoadNetwork, workplace: Path
) -> None:
    rows = [
        trip("0,1", "2015-11-05T08:00:00+08:00,2015-11-05 08:00:09.7 +0800"),
        trip("0,1", "2015-11-05T08:00:00Z,2015-11-05T08:00:09+00:00"),
        trip("0,1", "2015-11-05T08:00:00,2015-11-05 08:00:09"),
    ]
    seconds = read_trips(write_trips(workplace / "t.csv", *rows), network).time_s.reshape(-1, 2)
    assert np.array_equal(seconds, seconds[:1].repeat(3, axis=0))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2015-11-05T08:00:00+08:00", "2015-11-05T08:00:09+09:00"),
        ("2015-11-05T08:00:00Z", "2015-11-05T08:00:09+08:00"),
        ("2015-11-05T08:00:00", "2015-11-05T08:00:09Z"),
        ("2015-11-05T08:00:00-01:00", "2015-11-05T08:00:09+01:00"),
    ],
)
def test_two_clocks_in_a_trip_are_an_error(first: str, second: str, network: RoadNetwork, workplace: Path) -> None:
    path = write_trips(workplace / "t.csv", trip("0,1"), trip("0,1", f"{first},{second}"))
    assert error_of(read_trips, path, network).startswith(
        f"t.csv, line 3: trip 2: time_list: found '{first}' and '{second}', expected one offset for all times of a trip"
    )
    assert len(read_trips(path, network, "skip")) == 1


def test_time_of_day_and_weekend_are_those_on_the_wall(network: RoadNetwork, workplace: Path) -> None:
    """Friday evening in Greenwich is Saturday morning in Beijing; the trip says Saturday, half past seven."""
    path = write_trips(workplace / "t.csv", trip("0,1", "2015-11-07T07:30:00+08:00,2015-11-07T07:31:00+08:00"))
    np.testing.assert_allclose(time_of_day(read_trips(path, network)), [-7.5 / 24, -(7.5 + 1 / 60) / 24], rtol=1e-6)


def test_fractions_do_not_change_the_order_or_the_day(network: RoadNetwork, workplace: Path) -> None:
    first, second = times_of(network, workplace, "2015-11-05T23:59:59.2", "2015-11-05T23:59:59.9")
    assert first == second
    assert first % 86_400 == 86_399


@pytest.mark.parametrize(
    "text", ["2015-02-29T00:00:00", "2015-11-05 24:00:00", "2015-11-05T08:00:00+8:00", "2015-11-05T08:00:00+99:99"]
)
def test_what_is_no_time_is_named_as_it_stands(text: str, network: RoadNetwork, workplace: Path) -> None:
    path = write_trips(workplace / "t.csv", trip("0,1", f"2015-11-05T08:00:00,{text}"))
    assert f"time_list: found '{text}', expected a time such as 2015-11-05T08:01:14Z" in error_of(
        read_trips, path, network
    )
