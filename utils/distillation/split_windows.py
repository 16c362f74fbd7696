"""The distinct windows of a split: what a teacher must read to score all of its steps, each window once.

Trips of one city share most of their windows: on Beijing_OSM a window of four tokens occurs 15 times on average.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.data.loader import BatchLoader

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SplitWindows:
    """Distinct windows, and the questions about them. D windows, Q questions, A steps that ask, P positions.

    A question is a window and the road whose successors are the candidates: where tokens are cells, one window may
    end at several roads. Windows are ordered by length, questions by window.
    """

    slot: Ints  # [P] tokens; a trip's are SOT and all of its roads but the destination
    window_end: Ints  # [D], slot of the last token of one occurrence
    window_len: Ints  # [D], tokens, without the destination's
    destination: Ints | None  # [D], its token, for a teacher that reads it
    question_window: Ints  # [Q], ascending
    question_road: Ints  # [Q]
    asking: Ints  # [A], positions of the steps with two candidates or more, all tokens of which are known
    question: Ints  # [A], theirs
    certain: Ints  # positions of the steps with one candidate, all tokens of which are known

    def __len__(self) -> int:
        return len(self.window_end)

    @property
    def num_tokens(self) -> Ints:
        """Tokens that the teacher reads of each window, [D]."""
        return self.window_len + (self.destination is not None)

    def questions(self, first: int, last: int) -> slice:
        """The questions about the windows [first, last)."""
        return slice(*np.searchsorted(self.question_window, [first, last]).tolist())

    def blocks(self, first: int, last: int, max_tokens: int) -> Iterator[tuple[int, int]]:
        """Cut the windows [first, last) into runs of equal length with at most `max_tokens` tokens (or one window)."""
        while first < last:
            length = self.window_len[first]
            end = int(np.searchsorted(self.window_len[:last], length, side="right"))
            end = min(end, first + max(max_tokens // int(self.num_tokens[first]), 1))
            yield first, end
            first = end

    def tokens(self, first: int, last: int) -> Tensor:
        """The windows [first, last), which are of equal length: [last - first, T] int64."""
        back = np.arange(self.window_len[first] - 1, -1, -1)
        tokens = self.slot[self.window_end[first:last, None] - back]
        if self.destination is not None:
            tokens = np.column_stack([self.destination[first:last], tokens])
        return torch.from_numpy(tokens)


def find_windows(
    loader: BatchLoader, token_of_road: Tensor, window: int, sot: int, with_destination: bool
) -> SplitWindows:
    """Find the distinct windows of a split. Memory grows with its positions only, whatever the window.

    Args:
        loader: the split.
        token_of_road: [N] int64; -1 where the teacher knows none.
        window: tokens of the trip that the teacher reads at most.
        sot: the token that stands before each trip.
        with_destination: the teacher also reads the token of the destination.
    """
    token_of_road = token_of_road.cpu().numpy()
    road, first, degree = loader.road_id.cpu().numpy(), loader.first_position, loader.degree
    lengths = np.diff(first, append=len(road))
    token = token_of_road[road]
    slot = np.roll(token, 1)  # the slot of a road is one place later: its trip's destination makes room for SOT
    slot[first] = sot
    place = np.arange(len(road)) - np.repeat(first, lengths)

    step = np.flatnonzero(degree > 0)
    end, window_len = step + 1, np.minimum(place[step] + 2, window)
    unknown = np.concatenate([[0], np.cumsum(slot < 0)])
    known = unknown[end + 1] == unknown[end + 1 - window_len]
    known &= ~_leads_to_unknown(loader, token_of_road)[road[step]]
    destination = np.repeat(token[first + lengths - 1], lengths)[step]
    if with_destination:
        known &= destination >= 0
    asks = known & (degree[step] > 1)
    asking, certain = step[asks], step[known & ~asks]

    key = _ids_of_windows(slot, place, window)[asking + 1]
    if with_destination:
        key = key * (int(destination.max(initial=0)) + 1) + destination[asks]
    _, example, window_id = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(window_len[asks][example], kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    example = example[order]
    num_roads = len(token_of_road)
    asked, question = np.unique(rank[window_id] * num_roads + road[asking], return_inverse=True)
    return SplitWindows(
        slot=slot,
        window_end=asking[example] + 1,
        window_len=window_len[asks][example],
        destination=destination[asks][example] if with_destination else None,
        question_window=asked // num_roads,
        question_road=asked % num_roads,
        asking=asking,
        question=question,
        certain=certain,
    )


def _leads_to_unknown(loader: BatchLoader, token_of_road: Ints) -> NDArray[np.bool_]:
    """Roads [N] with a successor that has no token."""
    ptr, successor = (table.cpu().numpy() for table in (loader.tables.reach_ptr, loader.tables.reach_road))
    unknown = np.concatenate([[0], np.cumsum(token_of_road[successor] < 0)])
    return unknown[ptr[1:]] > unknown[ptr[:-1]]


def _ids_of_windows(slot: Ints, place: Ints, window: int) -> Ints:
    """[P], equal where the last `window` slots of the trip (fewer at its beginning) are equal.

    By prefix doubling (Karp, Miller and Rosenberg, 1972): the pair of the ids of two neighbouring windows tells the
    window that they make together, so log2(window) sorts do, and no window is written out.
    """
    single = np.unique(slot, return_inverse=True)[1]
    ids, length = single, 1
    for bit in f"{window:b}"[1:]:
        ids, length = _joined(ids, ids, length, place), 2 * length
        if bit == "1":
            ids, length = _joined(ids, single, 1, place), length + 1
    return ids


def _joined(earlier: Ints, later: Ints, later_len: int, place: Ints) -> Ints:
    """[P], ids of the windows that the `later` ones, of `later_len` slots, make with the `earlier` ones before them."""
    before = np.zeros_like(earlier)  # 0: the trip begins with the later window, or within it
    inside = np.flatnonzero(place >= later_len)
    before[inside] = earlier[inside - later_len] + 1
    return np.unique(later * (int(earlier.max()) + 2) + before, return_inverse=True)[1]
