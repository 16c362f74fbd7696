"""One shape for all batches of a split, to which they are padded."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

SAMPLE = 512  # batches that the shape is made for
# Where the trips of a batch, in descending order of length, may be cut into groups: shares of their number.
CUTS = (0.0, *(0.5**n for n in range(6, 0, -1)))
MOST_GROUPS = 4
PAIRS_OF_A_GROUP = 2**18  # pairs of steps that take a GPU as long as another group does: an estimate
# Of the longest trips of a group only so many are left out: one very long trip would be paid for by all batches.
LONGEST_QUANTILE = 0.99
MULTIPLE = 8  # of all sizes: products of others are slower on a GPU


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a padded batch. Its last trip is never there: what pads the steps has its place."""

    num_trips: int  # B
    num_steps: int  # S
    num_candidates: int  # K
    groups: tuple[tuple[int, int], ...]  # trips (B + 1 in all) and places of each, (G, T)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Trips, steps and candidates."""
        return self.num_trips, self.num_steps, self.num_candidates

    @property
    def num_pairs(self) -> int:
        """Pairs of steps within the padded trips."""
        return sum(trips * places**2 for trips, places in self.groups)

    @property
    def last_place(self) -> int:
        """A place in the trip that is never there."""
        return sum(trips * places for trips, places in self.groups) - 1

    def holds(self, length: NDArray[np.int64]) -> bool:
        """Whether the groups hold trips of these lengths, in descending order."""
        first = np.cumsum([0, *(trips for trips, _ in self.groups)])
        return len(length) <= self.num_trips and all(
            start >= len(length) or length[start] <= places
            for start, (_, places) in zip(first, self.groups, strict=False)
        )


def common_shape(length: NDArray[np.int64], candidates: NDArray[np.int64], batch_size: int) -> BatchShape:
    """A shape that holds nearly all batches of a shuffled split.

    Args:
        length: [trips], steps of each.
        candidates: [trips], candidates of all steps of each.
        batch_size: trips in a batch.
    """
    size, random, batches = min(batch_size, len(length)), np.random.default_rng(0), []
    while sum(len(part) for part in batches) < SAMPLE:
        order = random.permutation(len(length))
        batches.append(order[: len(order) // size * size].reshape(-1, size)[:SAMPLE])
    sample = np.concatenate(batches)  # [batches, B]
    first = sorted({int(share * size) for share in CUTS})
    longest = -np.sort(-length[sample], axis=1)[:, first]  # of a group that begins there
    places = [_multiple(each) for each in np.quantile(longest, LONGEST_QUANTILE, axis=0, method="higher")]
    sample = sample[(longest <= places).all(1)]
    return BatchShape(
        num_trips=size,
        num_steps=_multiple(length[sample].sum(1).max()),
        num_candidates=_multiple(candidates[sample].sum(1).max()),
        groups=_cheapest_groups(first, places, size + 1),
    )


def _cheapest_groups(first: list[int], places: list[int], trips: int) -> tuple[tuple[int, int], ...]:
    """Trips and places of groups: each begins at one of `first`, where the longest trip needs `places`."""

    def groups(begin: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        ends = [*(first[i] for i in begin[1:]), trips]
        return tuple((end - first[i], places[i]) for i, end in zip(begin, ends, strict=True))

    others = range(1, len(first))
    choices = (groups((0, *begin)) for number in range(MOST_GROUPS) for begin in combinations(others, number))
    return min(choices, key=lambda choice: sum(G * T**2 + PAIRS_OF_A_GROUP for G, T in choice))


def _multiple(size: np.int64) -> int:
    return -(-int(size) // MULTIPLE) * MULTIPLE
