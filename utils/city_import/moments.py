"""Times of fixes, in every form that the files of trips take, and in seconds since 1970."""

from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from utils.data.trips import BadTripError, parse_moments
from utils.errors import UserError

LATEST_S = 253_402_300_800  # the end of year 9999

Floats = NDArray[np.float64]


def parse_times_of_fixes(items: Sequence[str]) -> tuple[Floats, NDArray[np.bool_], dict[int, str]]:
    """Seconds since 1970 by the clock that the texts show, which of them are epoch seconds, and what is wrong.

    Epoch seconds are those of UTC; the others are of the clock on the wall, whatever offset stands behind them.
    """
    seconds = _epoch_seconds(items)
    if seconds is not None:
        return seconds, np.ones(len(items), dtype=bool), {}
    try:
        return parse_moments(items).astype(np.float64), np.zeros(len(items), dtype=bool), {}
    except BadTripError:
        return _one_by_one(items)


def _epoch_seconds(items: Sequence[str]) -> Floats | None:
    try:
        seconds = np.array(items, dtype=np.str_).astype(np.float64)
    except ValueError:
        return None
    return seconds if ((seconds >= 0) & (seconds < LATEST_S)).all() else None


def _one_by_one(items: Sequence[str]) -> tuple[Floats, NDArray[np.bool_], dict[int, str]]:
    seconds, is_epoch = np.zeros(len(items)), np.zeros(len(items), dtype=bool)
    wrong = {}
    for i, item in enumerate(items):
        epoch = _epoch_seconds([item])
        if epoch is not None:
            seconds[i], is_epoch[i] = epoch[0], True
            continue
        try:
            seconds[i] = parse_moments([item.strip(" '\"")])[0]
        except BadTripError:
            milliseconds = item.strip().isdigit() and len(item.strip()) == 13
            advice = " (milliseconds? divide them by 1000)" if milliseconds else ""
            wrong[i] = f"time: found {item[:60]!r}, expected 2015-11-05T08:01:14Z or seconds since 1970{advice}"
    return seconds, is_epoch, wrong


def are_of_one_clock(item: str, other: str) -> bool:
    """Whether two well-formed times have the same offset, or none."""
    if item == other:
        return True
    try:
        parse_moments([item.strip(" '\""), other.strip(" '\"")])
    except BadTripError:
        return False
    return True


def time_zone(name: str) -> ZoneInfo:
    """`Europe/Lisbon`.

    Raises:
        UserError: there is no such zone.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"--timezone: found {name!r}, expected a name such as Europe/Lisbon") from None


def local_shift_s(seconds: Floats, zone: ZoneInfo) -> Floats:
    """How many seconds the clocks of a zone are ahead of UTC at each of these moments [n]."""
    quarter, which = np.unique(np.floor_divide(seconds, 900).astype(np.int64), return_inverse=True)
    shifts = [datetime.fromtimestamp(900 * q, UTC).astimezone(zone).utcoffset() for q in quarter.tolist()]
    return np.array([shift.total_seconds() if shift else 0.0 for shift in shifts])[which]
