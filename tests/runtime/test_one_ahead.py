"""A thread makes the next item while the last one is used."""

import threading
from collections.abc import Iterator

import pytest

from utils.runtime.one_ahead import one_ahead


def test_the_items_are_the_same_in_the_same_order() -> None:
    assert list(one_ahead(range(100))) == list(range(100))
    assert list(one_ahead([])) == []
    assert list(one_ahead([None, None])) == [None, None]


def test_the_next_item_is_made_while_the_last_one_is_used() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    ahead = one_ahead(items())
    assert next(ahead) == 1
    assert made.wait(timeout=10)
    assert list(ahead) == [2]


def test_no_more_than_one_item_is_made_ahead_and_the_thread_ends_with_the_loop() -> None:
    made: list[int] = []
    before = threading.active_count()

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    ahead = one_ahead(items())
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.close()
    assert made == [0, 1, 2]
    assert threading.active_count() == before


def test_a_mistake_shows_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="the second"):
        next(ahead)
