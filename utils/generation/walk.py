"""Trips that are walked road by road: the most probable candidate at each step, or one that is drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.generation.paths import Next, Node, PathModel, Query, Trip
from utils.generation.reachability import Leads, Reachability


@dataclass(frozen=True)
class WalkRule:
    """How a candidate is chosen."""

    k: int = 1  # trips of each query
    temperature: float | None = None  # None: the most probable candidate
    top_k: int = 0  # of the candidates only the most probable ones; 0: all
    seed: int = 0


@dataclass
class _Walk:
    """One trip on its way."""

    place: int  # of the query
    rank: int
    node: Node
    draws: np.random.Generator | None  # of this query and rank alone
    steps: int = 0
    slots: list[int] = field(default_factory=list)


def walk_trips(
    paths: PathModel,
    reachability: Reachability,
    queries: Sequence[Query],
    rule: WalkRule,
    max_steps: Sequence[int],
    slots: int,
) -> Iterator[tuple[int, list[Trip]]]:
    """Walk all queries, `slots` trips at a time; yields the place of each query and its trips as the last one ends.

    A drawn candidate leads towards the destination: roads that it cannot be reached from are left out.

    Args:
        paths: what the model says.
        reachability: of the road network.
        queries: from where to where; the destinations can be reached.
        rule: how a candidate is chosen.
        max_steps: of each query's trips.
        slots: trips that are walked at once.
    """
    todo = [(place, rank) for place in range(len(queries)) for rank in range(rule.k)][::-1]
    done: dict[int, dict[int, Trip]] = {place: {} for place in range(len(queries))}
    active: list[_Walk] = []
    while todo or active:
        while todo and len(active) < slots:
            place, rank = todo.pop()
            draws = None
            if rule.temperature is not None:
                draws = np.random.default_rng([rule.seed, queries[place].row, rank])
            active.append(_Walk(place, rank, paths.start(queries[place]), draws))
        going = []
        for walk in active:
            status = _status(paths, walk, queries[walk.place], max_steps[walk.place])
            if status is None:
                going.append(walk)
                continue
            paths.release(walk.slots)
            trips = done[walk.place]
            trips[walk.rank] = Trip.from_node(walk.node, status, walk.steps)
            if len(trips) == rule.k:
                del done[walk.place]
                yield walk.place, [trips[rank] for rank in range(rule.k)]
        active = going
        if active:
            paths.extend([walk.node for walk in active], [queries[walk.place] for walk in active])
        for walk in active:
            walk.slots.append(walk.node.slot)
            walk.steps += 1
            after, walk.node.next = walk.node.next, None
            leads = reachability.to(queries[walk.place].destination)
            row = _choose(after, rule, walk.draws, leads)
            walk.node = after.node(row, walk.node)


def _status(paths: PathModel, walk: _Walk, query: Query, max_steps: int) -> str | None:
    """How a trip ends where it is; None: it goes further."""
    if walk.node.road == query.destination:
        return "reached"
    if not paths.candidates(walk.node.road):
        return "dead_end"
    return "limit" if walk.steps >= max_steps else None


def _choose(after: Next, rule: WalkRule, draws: np.random.Generator | None, leads: Leads) -> int:
    """Row of the candidate that is taken."""
    logit = np.array(after.answers.logit[after.begin : after.end])
    if rule.temperature is None:
        return after.begin + int(logit.argmax())
    logit[~leads(after.answers.road[after.begin : after.end])] = -np.inf
    if 0 < rule.top_k < len(logit):
        logit[np.argsort(-logit, kind="stable")[rule.top_k :]] = -np.inf
    weight = np.exp((logit - logit.max()) / rule.temperature)
    total = weight.cumsum()
    # Not the last one for a number that rounds up to the total, if that one has no weight.
    drawn = min(np.searchsorted(total, draws.random() * total[-1], side="right"), np.flatnonzero(weight)[-1])
    return after.begin + int(drawn)
