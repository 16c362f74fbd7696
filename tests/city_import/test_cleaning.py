"""What becomes of fixes before they are matched, and of trips behind it."""

from collections import Counter

import numpy as np
import pytest
from helpers import error_of

from utils.city_import.cleaning import CleaningOptions, average_close, clean_trip
from utils.city_import.drives import MAX_ROADS, Drive, merged, usable
from utils.city_import.matching import Fixes, Match
from utils.city_import.splits import SplitOptions, split_drives, without_repeats
from utils.city_import.times import entries

CITY = np.array([[-5000.0, -5000.0], [5000.0, 5000.0]])


def clean(*fixes: tuple[float, float], **options: float) -> tuple[list[list[float]], dict[str, int]]:
    """The times of the trips that are left of fixes (time, metres east), and what was counted."""
    counts: Counter[str] = Counter()
    time_s, east = np.array(fixes, dtype=np.float64).T
    xy = np.stack([east, np.zeros_like(east)], axis=1)
    parts = clean_trip(time_s, xy, CITY, CleaningOptions(**options), counts)
    return [part[0].tolist() for part in parts], dict(+counts)


def steady(*seconds: float) -> list[tuple[float, float]]:
    """Fixes of a car that drives 10 m/s."""
    return [(s, 10 * s) for s in seconds]


def test_a_good_trip_stays_as_it_is() -> None:
    assert clean(*steady(0, 15, 30, 45)) == ([[0, 15, 30, 45]], {})


def test_fixes_are_put_in_order_and_those_of_one_time_are_one() -> None:
    assert clean(*steady(30, 0, 15, 15)) == ([[0, 15, 30]], {"fixes at the time of another one": 1})


def test_a_fix_that_no_car_can_have_reached_is_left_out() -> None:
    fixes = [*steady(0, 15), (20, 4000), *steady(30, 45)]
    assert clean(*fixes) == ([[0, 15, 30, 45]], {"fixes that jump": 1})
    assert clean(*fixes, max_speed_kmh=4000) == ([[0, 15, 20, 30, 45]], {})


def test_when_all_further_fixes_are_elsewhere_the_trip_is_cut() -> None:
    elsewhere = [(s, 10 * s - 4000) for s in (45, 60, 75, 90)]
    assert clean(*steady(0, 15, 30), *elsewhere)[0] == [[0, 15, 30], [45, 60, 75, 90]]


def test_noise_is_no_jump_however_fast_fixes_follow() -> None:
    assert clean((0, 0), (1, 90), (2, 0))[0] == [[0, 1, 2]]


def test_a_trip_that_leaves_the_city_is_cut_there() -> None:
    fixes = [(0, 4800), (15, 5000), (30, 5300), (45, 5300), (60, 5000), (75, 4800)]
    trips, counts = clean(*fixes)
    assert trips == [[0, 15], [60, 75]]
    assert counts == {"fixes out of the city": 2, "trips cut where they leave the city": 1}


@pytest.mark.parametrize(("longest", "trips"), [(100, [[0, 15, 30], [230, 245]]), (300, [[0, 15, 30, 230, 245]])])
def test_a_long_gap_splits_a_trip(longest: float, trips: list[list[float]]) -> None:
    assert clean(*steady(0, 15, 30, 230, 245), max_gap_s=longest)[0] == trips


def test_a_long_stop_splits_a_trip_at_its_first_and_last_fix() -> None:
    stop = [(s, 310 + s % 20) for s in range(30, 400, 10)]
    fixes = [*steady(0, 15), *stop, (405, 500), (420, 700)]
    trips, counts = clean(*fixes)
    assert [(trip[0], trip[-1]) for trip in trips] == [(0, 30), (390, 420)]
    assert counts == {"trips cut at a stop": 1}
    assert len(clean(*fixes, max_stop_s=500)[0]) == 1


def test_a_trip_without_two_good_fixes_is_none() -> None:
    assert clean((0, 9000))[0] == []
    assert clean((0, 0))[0] == []


def test_close_fixes_become_one_but_not_the_ends_of_a_trip() -> None:
    time_s = np.array([0.0, 1, 2, 3, 4, 0, 60])
    xy = np.array([[0.0, 0], [2, 0], [4, 0], [6, 0], [8, 0], [0, 0], [500, 0]])
    fixes = average_close(Fixes(np.array([0, 5, 7]), time_s, xy), noise_m=5.0)
    assert fixes.ptr.tolist() == [0, 3, 5]
    assert fixes.time_s.tolist() == [0, 2, 4, 0, 60]
    assert fixes.xy_m[:, 0].tolist() == [0, 4, 8, 0, 500]


# Times


def match(fix_m: list[float], fix_time_s: list[float]) -> Match:
    """Four roads of 100 m."""
    starts = np.array([0.0, 100.0, 200.0, 300.0])
    return Match(0, [5, 6, 7, 8], starts, np.array(fix_m), np.array(fix_time_s), np.zeros(len(fix_m)))


def test_roads_are_entered_in_proportion_to_the_distance_between_fixes() -> None:
    roads, times = entries(match([20, 140, 340], [1000, 1012, 1032]), 0.0, 100.0)
    assert (roads.tolist(), times.tolist()) == ([5, 6, 7, 8], [1000, 1008, 1018, 1028])


def test_a_car_that_stands_enters_the_next_road_when_it_drives_on() -> None:
    _, times = entries(match([20, 95, 95, 350], [1000, 1010, 1100, 1120]), 0.0, 100.0)
    assert times[1] == 1100


def test_entry_times_are_whole_seconds_and_never_equal() -> None:
    _, times = entries(match([20, 399], [1000.7, 1001.2]), 0.0, 100.0)
    assert times.tolist() == [1000, 1001, 1002, 1003]


def test_roads_that_are_only_grazed_at_the_ends_are_left_out() -> None:
    roads, times = entries(match([80, 310], [1000, 1023]), 30.0, 100.0)
    assert (roads.tolist(), times.tolist()) == ([6, 7], [1002, 1012])
    assert entries(match([80, 310], [1000, 1023]), 5.0, 100.0)[0].tolist() == [5, 6, 7, 8]


# Trips


def drive(source: int, start_s: int, roads: int = 5) -> Drive:
    """A trip of a road each 10 seconds."""
    return Drive(source, np.arange(roads), start_s + 10 * np.arange(roads))


def test_short_trips_are_dropped_and_counted() -> None:
    counts: Counter[str] = Counter()
    kept = usable([drive(0, 0, 2), drive(1, 0, 3), drive(2, 0, 9)], 3, 30, counts)
    assert [item.source for item in kept] == [2]
    assert counts == {"trips of too few roads": 1, "trips of too few seconds": 1}


def test_a_trip_too_long_for_the_model_is_cut() -> None:
    pieces = usable([drive(0, 0, 2 * MAX_ROADS + 1)], 3, 30, Counter())
    assert [len(piece.roads) for piece in pieces] == [667, 667, 667]


def test_a_road_twice_in_a_row_is_one() -> None:
    roads, times = merged(np.array([4, 4, 5, 4]), np.array([0, 10, 20, 30]))
    assert (roads.tolist(), times.tolist()) == ([4, 5, 4], [0, 20, 30])


def test_the_same_trip_of_the_same_user_is_taken_once() -> None:
    trips = [drive(0, 0), drive(1, 0), drive(2, 0), drive(3, 10)]
    assert [trip.source for trip in without_repeats(trips, ["a", "a", "b", "a"])] == [0, 2, 3]


# Splits


def splits(drives: list[Drive], users: list[str], **options: object) -> dict[str, list[int]]:
    """Sources of the trips of each split."""
    index = split_drives(drives, users, SplitOptions(**options))
    return {name: [drives[i].source for i in places] for name, places in index.items()}


def test_splits_have_their_shares_and_depend_on_the_seed() -> None:
    drives = [drive(i, 100 * i) for i in range(1000)]
    one, same, other = (splits(drives, [""] * 1000, seed=seed) for seed in (1, 1, 2))
    assert [len(one[name]) for name in ("train", "val", "test")] == [700, 100, 200]
    assert one == same != other
    assert sorted(one["train"] + one["val"] + one["test"]) == list(range(1000))


def test_by_time_the_earliest_trips_are_for_training() -> None:
    drives = [drive(i, 100 * (i * 7 % 10)) for i in range(10)]
    found = splits(drives, [""] * 10, by="time")
    starts = {name: [100 * (i * 7 % 10) for i in sources] for name, sources in found.items()}
    assert starts == {"train": [0, 100, 200, 300, 400, 500, 600], "val": [700], "test": [800, 900]}


def test_pieces_of_one_trace_and_traces_of_one_user_stay_together() -> None:
    drives = [drive(i // 2, 100 * i) for i in range(200)]
    found = splits(drives, [""] * 100)
    assert not set(found["train"]) & set(found["val"]) and not set(found["train"]) & set(found["test"])
    users = [f"user {i % 10}" for i in range(100)]
    of_users = {name: {users[i] for i in sources} for name, sources in splits(drives, users, by_user=True).items()}
    assert [len(of_users[name]) for name in ("train", "val", "test")] == [7, 1, 2]


def test_what_cannot_be_split_is_refused() -> None:
    assert "--by_user: the traces have no column of users" in error_of(splits, [drive(0, 0)], [""], by_user=True)
    drives = [drive(0, 0), drive(1, 100)]
    assert "too few for --split 0.7 0.1 0.2" in error_of(splits, drives, ["", ""])
    assert [len(v) for v in splits([*drives, drive(2, 200)], [""] * 3).values()] == [1, 1, 1]
