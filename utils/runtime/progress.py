"""Progress bars: on a terminal only, and gone when they are done. Long work says how far it is also without one."""

import os
import time
from collections.abc import Iterable
from typing import Any

from loguru import logger
from tqdm import tqdm

REPORT_EVERY_S = 60.0
HIDDEN = "HOSER_NO_PROGRESS"  # in the environment of all but the first of several processes


def progress(items: Iterable[Any] | None, title: str, total: int | None, unit: str, done: int = 0) -> tqdm:
    """A bar over `items`, or one that is updated by hand (`items` is None); `total` is None where it is not known.

    What was `done` before does not count for the speed, nor for the time left.
    """
    hidden = True if HIDDEN in os.environ else None  # None: hidden where there is no terminal
    return tqdm(items, title, total, unit=f" {unit}", disable=hidden, leave=False, initial=done)


class ProgressReport:
    """The share of long work that is done and the time left, as a message each minute: for where no bar is seen."""

    def __init__(self, title: str, total: int, done: int = 0):
        self._title, self._total, self._done = title, total, done
        self._first_done, self._began = done, time.monotonic()
        self._reported = self._began

    def update(self, amount: int) -> None:
        """So much more is done."""
        self._done += amount
        now = time.monotonic()
        if now - self._reported >= REPORT_EVERY_S:
            self._reported = now
            left = (self._total - self._done) * (now - self._began) / (self._done - self._first_done)
            logger.info(f"{self._title}: {self._done / self._total:.0%}, {tqdm.format_interval(left)} left")
