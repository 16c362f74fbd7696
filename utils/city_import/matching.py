"""Map matching by a hidden Markov model (Newson and Krumm, SIGSPATIAL 2009), for many trips at once.

The hidden states of a fix are the roads near it. A state is the likelier, the nearer the road is (their equation 1:
normal in the distance), and a step between two states, the nearer the length of the way between them is to the straight
distance between the fixes (their equation 2: exponential in the difference). The likeliest sequence is Viterbi's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.city_import.routes import Routes
from utils.city_import.shapes import Candidates, RoadShapes

CANDIDATES = 16  # roads near a fix that are considered, both directions of a street counted
SPREAD_M = 10.0  # beta of equation 2, for fixes without noise
LIMITS_M = (700.0, 1500.0, 4000.0, 10_000.0, 30_000.0)  # of ways; the first that is far enough for a step is taken
DETOUR = 1.6  # a way between two fixes that is longer than this times the straight distance, and SPARE_M, is none
WIDE_DETOUR = 5.0  # the same for trips that are cut by that limit
SPARE_M = 300.0
USUAL_M_S, USUAL_M = 25.0, 1500.0  # a way driven at this speed, up to this length, is one however near the fixes are
# What is added to the length of a way. Drivers keep to a road; noise makes the lane beside it, or a visit to a dead
# end, look as good. Chosen on simulated drivers in maps of Beijing, Helsinki and a synthetic city.
TURN_M = 50.0  # for a turn by 180 degrees, less for others
U_TURN_M = 60.0  # for a road driven back
ROAD_M = 10.0  # for each road
FAST = 1.3  # times the greatest speed: no way is driven faster

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Fixes:
    """GPS fixes of n trips, packed; trip i is the slice ptr[i] to ptr[i + 1]."""

    ptr: Ints  # [n + 1]
    time_s: Floats  # [F], in ascending order within a trip
    xy_m: Floats  # [F, 2]

    def take(self, keep: NDArray[np.bool_]) -> "Fixes":
        """Those where `keep` [F] is true."""
        before = np.concatenate([[0], np.cumsum(keep)])
        return Fixes(before[self.ptr], self.time_s[keep], self.xy_m[keep])


@dataclass(frozen=True)
class Match:
    """A stretch of a trip on the map: its roads, and where on the way each fix is."""

    trip: int
    roads: list[int]
    start_m: Floats  # [L], distance from the start of the first road to that of each road
    fix_m: Floats  # [F], the same for the fixes, ascending
    fix_time_s: Floats  # [F]
    distance_m: Floats  # [F], from the fixes to their roads


@dataclass(frozen=True)
class Matched:
    """The stretches of a block of trips, and what was left out."""

    matches: list[Match]
    far: int  # fixes with no road near
    odd: int  # fixes left out because no way leads to them
    breaks: int  # places where a trip was cut because no way leads on


@dataclass(frozen=True)
class MatchOptions:
    """What the matcher assumes."""

    noise_m: float  # standard deviation of the fixes, in each direction
    max_speed_m_s: float

    @property
    def radius_m(self) -> float:
        """How far from a fix roads are looked for."""
        return float(np.clip(4 * self.noise_m, 35.0, 200.0))

    @property
    def spread_m(self) -> float:
        """beta of equation 2: noise makes straight distances differ from ways, too."""
        return SPREAD_M + self.noise_m


class Matcher:
    """Matches trips to the roads of one city."""

    def __init__(self, shapes: RoadShapes, pairs: Ints, options: MatchOptions):
        self.shapes = shapes
        self.options = options
        turns = np.where(shapes.are_ways_back(*pairs.T), U_TURN_M, TURN_M * shapes.turns(*pairs.T) / np.pi) + ROAD_M
        self.routes = Routes(pairs, shapes.length_m, shapes.start_m, turns)

    def match(self, fixes: Fixes) -> Matched:
        """The most probable roads of each trip.

        Where no way leads from one fix to the next, longer ways are tried, then fixes beside the break are left out;
        where nothing helps, the trip is cut.
        """
        found = self.shapes.candidates(fixes.xy_m, self.options.radius_m, CANDIDATES)
        near = np.isfinite(found.distance_m[:, 0])
        block = _Block(fixes, found, np.arange(len(fixes.ptr) - 1), np.zeros(len(near), dtype=bool)).without(~near)
        matches: list[Match] = []
        block = self._match(block, DETOUR, matches)
        block = self._match(block, WIDE_DETOUR, matches)
        for places in ((0,), (-1,), (0, 0)):  # of the fix that is wrong, counted from the one behind the break
            trial = block
            for place in places:
                trial = self._match(trial.without(np.roll(trial.is_cut, place)), WIDE_DETOUR, matches)
            block = block.only(np.isin(block.trips, trial.trips))
        self._match(block, WIDE_DETOUR, matches, is_last=True)
        matches.sort(key=lambda match: match.trip)  # pieces of one trip are in order already
        odd = int(near.sum()) - sum(len(match.fix_m) for match in matches)
        return Matched(matches, int((~near).sum()), odd, int(block.is_cut.sum()))

    def _match(self, block: "_Block", detour: float, matches: list[Match], is_last: bool = False) -> "_Block":
        """Match what can be matched without a break, or all; what is left, with the breaks."""
        if not len(block.trips):
            return block
        steps = self._steps(block.fixes, block.found, detour)
        state, is_cut = self._viterbi(block.fixes, block.found, steps)
        broken = np.zeros(len(block.trips), dtype=bool)
        broken[np.searchsorted(block.fixes.ptr, np.flatnonzero(is_cut), side="right") - 1] = not is_last
        numbers = np.where(broken, -1, block.trips)
        matches += self._assemble(block.fixes, block.found, steps, state, is_cut, numbers)
        return _Block(block.fixes, block.found, block.trips, is_cut).only(broken)

    def _steps(self, fixes: Fixes, found: Candidates, detour: float) -> "Steps":
        """Log-probabilities of all steps between the states of consecutive fixes of a trip."""
        is_first = np.zeros(len(fixes.time_s) + 1, dtype=bool)
        is_first[fixes.ptr] = True
        to = np.flatnonzero(~is_first[:-1])
        straight = np.hypot(*(fixes.xy_m[to] - fixes.xy_m[to - 1]).T)
        seconds = fixes.time_s[to] - fixes.time_s[to - 1]
        longest = np.maximum(detour * straight + SPARE_M, np.minimum(USUAL_M_S * seconds, USUAL_M))
        longest = np.minimum(longest, FAST * self.options.max_speed_m_s * seconds + SPARE_M)
        limit = np.searchsorted(LIMITS_M, longest).clip(max=len(LIMITS_M) - 1)
        way = self._way_lengths(to, limit, found)
        log_prob = -np.abs(way - straight[:, None, None]) / self.options.spread_m
        log_prob[~(way <= longest[:, None, None])] = -np.inf
        return Steps(to, limit, log_prob.astype(np.float32))

    def _way_lengths(self, to: Ints, limit: Ints, found: Candidates) -> NDArray[np.float32]:
        """[S, K, K], metres from each state of the fix before to each of fix `to`; infinite where there is no way."""
        origin, destination = found.road[to - 1][:, :, None], found.road[to][:, None, :]
        along = found.along_m[to][:, None, :] - found.along_m[to - 1][:, :, None]
        way = np.full(along.shape, np.inf, dtype=np.float32)
        exists = (origin >= 0) & (destination >= 0)
        # Noise puts fixes of one road behind each other; a car that stands still does the same.
        stays = exists & (origin == destination) & (along >= -3 * self.options.noise_m)
        way[stays] = np.maximum(along[stays], 0.0)
        moves = exists & (origin != destination)
        for number, limit_m in enumerate(LIMITS_M):
            step, i, j = np.nonzero(moves & (limit == number)[:, None, None])
            if len(step):
                here, there = origin[step, i, 0].astype(np.int64), destination[step, 0, j].astype(np.int64)
                way[step, i, j] = self.routes.distances(here, there, limit_m) + along[step, i, j]
        return way

    def _viterbi(self, fixes: Fixes, found: Candidates, steps: "Steps") -> tuple[Ints, NDArray[np.bool_]]:
        """The state of each fix in the most probable sequence; where no step leads to a fix, a new sequence begins."""
        near = -0.5 * (found.distance_m / self.options.noise_m) ** 2  # [F, K]
        best, back = near.copy(), np.zeros(found.road.shape, dtype=np.int64)
        is_cut = np.zeros(len(fixes.time_s), dtype=bool)
        step_to = np.full(len(fixes.time_s), -1)
        step_to[steps.to] = np.arange(len(steps.to))
        length = np.diff(fixes.ptr)
        for place in range(1, int(length.max(initial=0))):
            fix = fixes.ptr[:-1][length > place] + place
            score = best[fix - 1][:, :, None] + steps.log_prob[step_to[fix]]
            back[fix] = score.argmax(axis=1)
            score = score.max(axis=1) + near[fix]
            reached = np.isfinite(score).any(axis=1)
            best[fix[reached]] = score[reached]
            is_cut[fix[~reached]] = True
        state = best.argmax(axis=1)
        for place in range(int(length.max(initial=0)) - 2, -1, -1):
            fix = fixes.ptr[:-1][length > place + 1] + place
            fix = fix[~is_cut[fix + 1]]
            state[fix] = back[fix + 1, state[fix + 1]]
        return state, is_cut

    def _assemble(
        self,
        fixes: Fixes,
        found: Candidates,
        steps: "Steps",
        state: Ints,
        is_cut: NDArray[np.bool_],
        trips: Ints,
    ) -> list[Match]:
        """The roads along the states, stretch by stretch, of the trips whose number is not -1."""
        every = np.arange(len(state))
        road, along = found.road[every, state].astype(np.int64), found.along_m[every, state].astype(np.float64)
        distance = found.distance_m[every, state].astype(np.float64)
        paths: dict[int, list[int]] = {}
        drives = ~is_cut[steps.to] & (road[steps.to - 1] != road[steps.to])
        for number, limit_m in enumerate(LIMITS_M):
            to = steps.to[drives & (steps.limit == number)]
            if len(to):
                paths |= zip(to.tolist(), self.routes.paths(road[to - 1], road[to], limit_m), strict=True)
        starts = np.union1d(fixes.ptr[:-1][np.diff(fixes.ptr) > 0], np.flatnonzero(is_cut))
        numbers = trips[np.searchsorted(fixes.ptr, starts, side="right") - 1]
        matches = []
        for number, first, last in zip(numbers.tolist(), starts, [*starts[1:], len(state)], strict=True):
            if number < 0:
                continue
            roads, at = [int(road[first])], [0]
            for fix in range(first + 1, last):
                roads += paths.get(fix, ())[1:]
                at.append(len(roads) - 1)
            start = np.concatenate([[0.0], np.cumsum(self.shapes.length_m[roads[:-1]])])
            places = np.maximum.accumulate(start[at] + along[first:last])
            matches.append(Match(number, roads, start, places, fixes.time_s[first:last], distance[first:last]))
        return matches


@dataclass(frozen=True)
class Steps:
    """Steps to S fixes from the fixes before them."""

    to: Ints  # [S]
    limit: Ints  # [S], place in LIMITS_M
    log_prob: NDArray[np.float32]  # [S, K, K]


@dataclass(frozen=True)
class _Block:
    """Trips that are matched together, with the roads near their fixes."""

    fixes: Fixes
    found: Candidates
    trips: Ints  # [n], their numbers
    is_cut: NDArray[np.bool_]  # [F], no way leads to the fix

    def without(self, fixes: NDArray[np.bool_]) -> "_Block":
        """Without some of the fixes [F]."""
        found = Candidates(*(values[~fixes] for values in vars(self.found).values()))
        return _Block(self.fixes.take(~fixes), found, self.trips, self.is_cut[~fixes])

    def only(self, trips: NDArray[np.bool_]) -> "_Block":
        """Some of the trips [n]."""
        block = self.without(~np.repeat(trips, np.diff(self.fixes.ptr)))
        ptr = np.append(block.fixes.ptr[:-1][trips], block.fixes.ptr[-1])
        fixes = Fixes(ptr, block.fixes.time_s, block.fixes.xy_m)
        return _Block(fixes, block.found, self.trips[trips], block.is_cut)
