"""Making one street of those that follow each other without a junction, as the published data have them."""

from collections import Counter
from collections.abc import Iterable, Mapping

from utils.city_import.streets import Street

End = tuple[int, bool]  # a street, and whether it is its last node that is meant


def merge_streets(streets: list[Street], fixed: Iterable[int], counts: Counter[str]) -> list[Street]:
    """Join streets at nodes where exactly two meet that may be driven in the same directions.

    Args:
        streets: as they were read.
        fixed: nodes at which nothing is joined, since a turn restriction speaks of them.
        counts: counts streets left out because another one is the same line.
    """
    streets = _without_doubles(streets, counts)
    ends: dict[int, list[End]] = {}
    for number, street in enumerate(streets):
        ends.setdefault(street.nodes[0], []).append((number, False))
        ends.setdefault(street.nodes[-1], []).append((number, True))
    across = _links(streets, ends, set(fixed))
    merged, done = [], set()
    # Chains first, from their ends; what is left then are rings that no junction is on.
    starts = sorted(end for number in range(len(streets)) for end in ((number, False), (number, True)))
    for end in [*(end for end in starts if end not in across), *starts]:
        if end[0] not in done:
            chain = _chain(end, across)
            done.update(number for number, _ in chain)
            merged.append(_join(streets, chain))
    return merged


def _without_doubles(streets: list[Street], counts: Counter[str]) -> list[Street]:
    """Leave out streets along the same points as another one that may be driven in the same directions."""
    seen: set[tuple[bool, tuple]] = set()
    kept = []
    for street in streets:
        points = tuple(street.points)
        ways = {(points, street.nodes[0])} if street.forward else set()
        ways |= {(points[::-1], street.nodes[-1])} if street.backward else set()
        if ways <= seen:
            counts["streets along the same line as another one"] += 1
            continue
        seen |= ways
        kept.append(street)
    return kept


def _links(streets: list[Street], ends: Mapping[int, list[End]], fixed: set[int]) -> dict[End, End]:
    """The end that each end is joined to."""
    across = {}
    for node, here in ends.items():
        if node in fixed or len(here) != 2 or here[0][0] == here[1][0]:
            continue
        one, other = here
        if _arrives(streets, one) == _leaves(streets, other) and _leaves(streets, one) == _arrives(streets, other):
            across[one], across[other] = other, one
    return across


def _arrives(streets: list[Street], end: End) -> bool:
    """Whether the street may be driven towards this end."""
    number, is_last = end
    return streets[number].forward if is_last else streets[number].backward


def _leaves(streets: list[Street], end: End) -> bool:
    number, is_last = end
    return streets[number].backward if is_last else streets[number].forward


def _chain(start: End, across: Mapping[End, End]) -> list[End]:
    """The streets from `start` on, each with whether it is turned round (its last node comes first)."""
    chain, end = [start], start
    while (following := across.get((end[0], not end[1]))) is not None and following != start:
        chain.append(following)
        end = following
    return chain


def _join(streets: list[Street], chain: list[End]) -> Street:
    parts = [_turned(streets[number]) if is_last else streets[number] for number, is_last in chain]
    first = parts[0]
    return Street(
        nodes=first.nodes + [node for part in parts[1:] for node in part.nodes[1:]],
        points=first.points + [point for part in parts[1:] for point in part.points[1:]],
        forward=first.forward,
        backward=first.backward,
        pieces=[piece for part in parts for piece in part.pieces],
        forward_edges=[edge for part in parts for edge in part.forward_edges],
        backward_edges=[edge for part in parts for edge in part.backward_edges],
    )


def _turned(street: Street) -> Street:
    return Street(
        nodes=street.nodes[::-1],
        points=street.points[::-1],
        forward=street.backward,
        backward=street.forward,
        pieces=street.pieces[::-1],
        forward_edges=street.backward_edges,
        backward_edges=street.forward_edges,
    )
