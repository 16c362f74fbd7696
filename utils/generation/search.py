"""Best-first search for trips, many queries at once: the published search, and an exact one.

The published search is Dijkstra's algorithm on costs that depend on the whole path before, so it nearly always finds
the most probable path, never certainly. Nodes are roads; a road is settled when it is popped, with the path that it is
popped with. For k trips, a road is settled up to k times (with k = 1 that is the published search). The exact search
settles nothing: every path towards the destination may be extended, and the i-th pop of the destination is the i-th
most probable path.
"""

import bisect
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from utils.generation.paths import Node, PathModel, Query, Trip
from utils.generation.reachability import Leads, Reachability

# Rows of a call of the model, which has a fixed cost: where few searches are active, paths ahead fill it up.
ROWS = 256
# Only paths whose log-probability is at most this much below that of the path that a search waits for: nearly all of
# them are popped later. Of others few are, where the model is sure. (Of 0.5 to 4, 1 was the fastest with 16 queries.)
LIKELY = 1.0
HEAP_SHARE = 4  # entries of a heap that are looked at, for each path that is asked about


@dataclass(frozen=True)
class SearchRule:
    """Which search, and how long."""

    k: int = 1  # trips of each query
    is_exact: bool = False
    max_expansions: int = 5000  # of each query; 0: no limit


@dataclass
class _Search:
    """The search for one query."""

    query: Query
    rule: SearchRule
    heap: list[Node]
    leads: Leads
    expansions: int = 0
    found: list[Trip] = field(default_factory=list)
    settled: dict[int, int] = field(default_factory=dict)  # road -> how often
    best: dict[int, list[float]] = field(default_factory=dict)  # road -> the k best log-probabilities pushed, ascending
    least: dict[int, float] = field(default_factory=dict)  # road -> the least of these, once there are k
    fallback: Node | None = None  # nearest to the destination
    slots: list[int] = field(default_factory=list)
    waiting: Node | None = None  # popped, and the model has not been asked about it

    def __post_init__(self) -> None:
        self._note(self.query.origin, 0.0)

    def advance(self, candidates: Callable[[int], list[int]]) -> bool:
        """Pop and extend paths until the model must be asked about one (`waiting`; False) or the end (True)."""
        limit = self.rule.max_expansions or float("inf")
        while True:
            node, self.waiting = self.waiting, None
            if node is None:
                if not self.heap or self.expansions >= limit:
                    return True
                node = heapq.heappop(self.heap)
                if not self._settle(node):
                    continue
                if node.road == self.query.destination:
                    self.found.append(Trip.from_node(node, "reached", self.expansions))
                    if len(self.found) == self.rule.k:
                        return True
                    continue
                if self.fallback is None or node.distance_m < self.fallback.distance_m:
                    self.fallback = node
                if not candidates(node.road):
                    continue
            if node.next is not None:
                self._extend(node)
            elif self._can_push(node, candidates):
                self.waiting = node
                return False
            else:
                self.expansions += 1

    def _settle(self, node: Node) -> bool:
        """Whether a popped path counts."""
        if self.rule.is_exact:
            return True
        times = self.settled.get(node.road, 0)
        self.settled[node.road] = times + 1
        return times < self.rule.k

    def _extend(self, node: Node) -> None:
        after, node.next = node.next, None
        roads, log_probs = after.answers.road, after.answers.log_prob
        for row in range(after.begin, after.end):
            road, log_prob = roads[row], log_probs[row]
            if self._is_wanted(road, log_prob):
                if not self.rule.is_exact:
                    self._note(road, log_prob)
                heapq.heappush(self.heap, after.node(row, node))
        self.expansions += 1

    def _can_push(self, node: Node, candidates: Callable[[int], list[int]]) -> bool:
        """Whether the model must be asked about a path: with a candidate, it is at most as probable as without."""
        if self.rule.is_exact:  # what is in the heap leads to the destination, so a candidate does
            return True
        log_prob, least = -node, self.least
        for road in candidates(node.road):  # noqa: SIM110 - `any` takes three times as long
            if not log_prob <= least.get(road, math.nan):  # as in `_is_wanted`
                return True
        return False

    def _is_wanted(self, road: int, log_prob: float) -> bool:
        """Whether a path to a road is pushed: one of the k best to it so far; or, exactly, any that can arrive.

        (Where nothing is settled, a circle of roads without a way out would be followed for ever.)
        """
        if self.rule.is_exact:
            return bool(self.leads(road))
        return not log_prob <= self.least.get(road, math.nan)  # no number is at most NaN

    def _note(self, road: int, log_prob: float) -> None:
        """Keep the k best log-probabilities."""
        if self.rule.k == 1:
            self.least[road] = log_prob
            return
        best = self.best.setdefault(road, [])
        bisect.insort(best, log_prob)
        del best[: -self.rule.k]
        if len(best) == self.rule.k:
            self.least[road] = best[0]

    def ahead(self, number: int, candidates: Callable[[int], list[int]]) -> Iterator[Node]:
        """Paths that will probably be popped next: the search is played on, as far as the model has been asked.

        What the model says about a path depends on nothing else, so it may be asked before; only if the path is
        popped does that count.
        """
        heap = self.heap[: HEAP_SHARE * number]  # the beginning of a heap is one
        highest = self.waiting + LIKELY
        while heap and number:
            node = heapq.heappop(heap)
            if node > highest:
                return
            if self.settled.get(node.road, 0) >= self.rule.k:
                continue
            if node.road == self.query.destination:
                return
            if node.next is not None:
                after, answers = node.next, node.next.answers
                for row in range(after.begin, after.end):
                    if self._is_wanted(answers.road[row], answers.log_prob[row]):
                        heapq.heappush(heap, after.node(row, node))
            elif self._can_push(node, candidates):
                number -= 1
                yield node

    def trips(self) -> list[Trip]:
        """Those that were found; or the path that came nearest to the destination."""
        return self.found or [Trip.from_node(self.fallback, "limit", self.expansions)]


def search_trips(
    paths: PathModel, reachability: Reachability, queries: Sequence[Query], rule: SearchRule, slots: int
) -> Iterator[tuple[int, list[Trip]]]:
    """Search for all queries, `slots` at a time; yields the place of each and its trips as it ends.

    Queries that are far from their destination come first: they take the longest, and are not left over at the end.

    Args:
        paths: what the model says.
        reachability: of the road network.
        queries: from where to where; the destinations can be reached.
        rule: which search.
        slots: queries that are searched for at once.
    """
    starts = paths.starts(queries)
    todo = sorted(range(len(queries)), key=lambda i: starts[i].distance_m)
    active: dict[int, _Search] = {}
    while todo or active:
        while todo and len(active) < slots:
            place = todo.pop()
            leads = reachability.to(queries[place].destination)
            active[place] = _Search(queries[place], rule, [starts[place]], leads)
        ended = [place for place, search in active.items() if search.advance(paths.candidates)]
        for place in ended:
            search = active.pop(place)
            paths.release(search.slots)
            yield place, search.trips()
        _ask(paths, list(active.values()), slots)


def _ask(paths: PathModel, searches: list[_Search], slots: int) -> None:
    """Ask the model about the path that each search waits for; and about paths ahead where slots are idle."""
    if not searches:
        return
    asked = [(search.waiting, search) for search in searches]
    ahead = min(slots, ROWS) // len(searches) - 1
    if ahead > 0:
        asked += [(node, search) for search in searches for node in search.ahead(ahead, paths.candidates)]
    paths.extend([node for node, _ in asked], [search.query for _, search in asked])
    for node, search in asked:
        search.slots.append(node.slot)
