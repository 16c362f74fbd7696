"""From raw fixes to trips that can be matched: outliers, stops, gaps, and fixes that say the same."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.city_import.matching import Fixes

JUMP_M = 100.0  # of any two fixes, however fast they follow: noise alone makes them differ
STOP_M = 60.0  # a car that stays within this distance of a fix stands still
LONGEST_GROUP_S = 15.0  # fixes that are made one
EDGE_M = 200.0  # around the roads of the city, that count as the city

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CleaningOptions:
    """What is a trip."""

    max_speed_kmh: float = 150.0
    max_stop_s: float = 300.0
    max_gap_s: float = 300.0
    min_roads: int = 3
    min_seconds: float = 30.0


def clean_trip(
    time_s: Floats, xy_m: Floats, city_m: Floats, options: CleaningOptions, counts: Counter[str]
) -> list[tuple[Floats, Floats]]:
    """The fixes of one trip as trips without outliers, long stops and long gaps.

    Args:
        time_s: [F], in any order.
        xy_m: [F, 2].
        city_m: [2, 2], least and greatest x and y of the city's roads.
        options: the limits.
        counts: is told what was left out and cut.
    """
    if (np.diff(time_s) < 0).any():
        order = np.argsort(time_s, kind="stable")
        time_s, xy_m = time_s[order], xy_m[order]
    first = np.append(True, np.diff(time_s) > 0)
    counts["fixes at the time of another one"] += int((~first).sum())
    time_s, xy_m = time_s[first], xy_m[first]
    cuts = []
    keep, jump_cuts = _without_jumps(time_s, xy_m, options.max_speed_kmh / 3.6)
    counts["fixes that jump"] += int((~keep).sum())
    counts["trips cut at a jump"] += len(jump_cuts)
    inside = ((xy_m >= city_m[0] - EDGE_M) & (xy_m <= city_m[1] + EDGE_M)).all(axis=1)
    counts["fixes out of the city"] += int((keep & ~inside).sum())
    left = np.flatnonzero(keep & ~inside)
    kept = np.flatnonzero(keep & inside)
    if not len(kept):
        return []
    time_s, xy_m = time_s[kept], xy_m[kept]
    # A trip that leaves the city is another one when it comes back.
    leaves = np.unique(np.searchsorted(kept, left))
    leaves = leaves[(leaves > 0) & (leaves < len(kept))]
    counts["trips cut where they leave the city"] += len(leaves)
    gaps = np.flatnonzero(np.diff(time_s) > options.max_gap_s) + 1
    counts["trips cut at a gap"] += len(gaps)
    cuts = np.unique(np.concatenate([np.searchsorted(kept, jump_cuts), leaves, gaps]).astype(np.int64))
    parts = []
    for start, end in zip([0, *cuts], [*cuts, len(time_s)], strict=True):
        for begin, stop in _between_stops(time_s[start:end], xy_m[start:end], options.max_stop_s, counts):
            parts.append((time_s[start + begin : start + stop], xy_m[start + begin : start + stop]))
    return parts


def _without_jumps(time_s: Floats, xy_m: Floats, max_speed_m_s: float) -> tuple[NDArray[np.bool_], list[int]]:
    """Which fixes no car can have left out, and where fixes from then on are elsewhere: a trip is cut there."""
    keep = np.ones(len(time_s), dtype=bool)
    if not _is_jump(np.hypot(*np.diff(xy_m, axis=0).T), np.diff(time_s), max_speed_m_s).any():
        return keep, []
    cuts, last, refused = [], 0, []
    for i in range(1, len(time_s)):
        if not _is_jump(np.hypot(*(xy_m[i] - xy_m[last])), time_s[i] - time_s[last], max_speed_m_s):
            last, refused = i, []
            continue
        keep[i] = False
        refused.append(i)
        agree = [
            j
            for j in refused[-3:]
            if not _is_jump(np.hypot(*(xy_m[i] - xy_m[j])), time_s[i] - time_s[j], max_speed_m_s)
        ]
        if len(agree) == 3:  # it is not these that are wrong
            keep[agree] = True
            cuts.append(agree[0])
            last, refused = i, []
    return keep, cuts


def _is_jump(distance_m: Floats, seconds: Floats, max_speed_m_s: float) -> NDArray[np.bool_]:
    return distance_m - JUMP_M > max_speed_m_s * seconds


def _between_stops(time_s: Floats, xy_m: Floats, longest_s: float, counts: Counter[str]) -> list[tuple[int, int]]:
    """The slices before, between and after stops; the first and last fix of a stop belong to the trips beside it."""
    end = np.searchsorted(time_s, time_s + longest_s, side="right") - 1  # the last fix within the time
    later = np.minimum(end + 1, len(time_s) - 1)
    near = (end < len(time_s) - 1) & (np.hypot(*(xy_m[later] - xy_m).T) < STOP_M)
    slices, begin = [], 0
    for i in np.flatnonzero(near).tolist():
        if i < begin:
            continue
        away = np.flatnonzero(np.hypot(*(xy_m[i:] - xy_m[i]).T) >= STOP_M)
        last = i + (int(away[0]) if len(away) else len(time_s) - i) - 1
        if time_s[last] - time_s[i] > longest_s:
            counts["trips cut at a stop"] += 1
            slices.append((begin, i + 1))
            begin = last
    slices.append((begin, len(time_s)))
    return [(first, last) for first, last in slices if last - first > 1]


def average_close(fixes: Fixes, noise_m: float) -> Fixes:
    """Make one fix, at their mean place and time, of those within three times the noise and `LONGEST_GROUP_S`.

    Their differences are noise more than motion. The first and last fix of a trip stay as they are.
    """
    close = np.hypot(*np.diff(fixes.xy_m, axis=0).T) < 3 * noise_m
    close &= np.diff(fixes.time_s) < LONGEST_GROUP_S
    inner = np.ones(len(fixes.time_s), dtype=bool)
    inner[fixes.ptr[:-1][np.diff(fixes.ptr) > 0]] = False
    inner[fixes.ptr[1:][np.diff(fixes.ptr) > 0] - 1] = False
    close &= inner[1:] & inner[:-1]
    if not close.any():
        return fixes
    starts = np.ones(len(fixes.time_s), dtype=bool)
    time, x, y = fixes.time_s.tolist(), *fixes.xy_m.T.tolist()
    begin = 0
    for i in (np.flatnonzero(close) + 1).tolist():
        begin = i - 1 if starts[i - 1] else begin
        if time[i] - time[begin] < LONGEST_GROUP_S and (x[i] - x[begin]) ** 2 + (y[i] - y[begin]) ** 2 < 9 * noise_m**2:
            starts[i] = False
    group = np.cumsum(starts) - 1
    size = np.bincount(group)
    means = [np.bincount(group, column) / size for column in (fixes.time_s - fixes.time_s[0], *fixes.xy_m.T)]
    before = np.concatenate([[0], np.cumsum(starts)])
    return Fixes(before[fixes.ptr], means[0] + fixes.time_s[0], np.stack(means[1:], axis=1))
