"""Work that is done while the program waits for something else."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; each is made by a thread while the one before is used.

    What making an item raises is raised where the item would have come.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        item = thread.submit(next, iterator, end).result()
        while item is not end:
            following = thread.submit(next, iterator, end)
            yield item
            item = following.result()
