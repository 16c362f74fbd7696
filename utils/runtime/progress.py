"""Progress bars: on a terminal only, and gone when they are done."""

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

HIDDEN = "HOSER_NO_PROGRESS"  # in the environment of all but the first of several processes


def progress(items: Iterable[Any] | None, title: str, total: int | None, unit: str) -> tqdm:
    """A bar over `items`, or one that is updated by hand (`items` is None); `total` is None where it is not known."""
    hidden = True if HIDDEN in os.environ else None  # None: hidden where there is no terminal
    return tqdm(items, title, total, unit=f" {unit}", disable=hidden, leave=False)
