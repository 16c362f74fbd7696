"""Paths from an origin towards a destination, and what a trained model says about the road after each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.batch import NextSteps, PathGroup, Prediction
from models.hoser import HOSER
from models.incremental import IncrementalHOSER
from models.ragged import ragged_arange, segment_softmax
from models.thread_count import threads_for
from utils.data.features import (
    RoadTables,
    center_distance_m,
    clipped_interval,
    clipped_km,
    is_weekend,
    metric_angle,
    metric_distance,
    temporal_info,
)
from utils.data.road_network import RoadNetwork
from utils.data.trips import TimeStatistics
from utils.runtime.cores import FreeCores
from utils.training.engine import check_predictions

FIRST_SLOTS = 4096
# Paths padded together have at least this share of the longest one's roads; this many paths are a group in any case.
GROUP_RATIO, GROUP_SIZE = 0.6, 64


@dataclass(frozen=True)
class Query:
    """What a trip is generated for."""

    origin: int  # road
    destination: int  # road
    start_s: int  # when the origin is entered, seconds since 1970
    row: int  # of the source that it is from, from 0


class Node(float):
    """A path, as its last road and the node before; as a number, minus its log-probability.

    Nodes compare by this number alone, as the published search compares them: of equal ones, the heap's own order
    decides. (A subclass of float compares as fast as a float.)
    """

    __slots__ = ("before", "depth", "distance_m", "log_time", "next", "road", "slot", "time_s")

    before: "Node | None"
    depth: int  # roads before its own
    road: int
    time_s: int  # when it is entered, seconds since 1970
    log_time: float  # log1p(seconds) on the road before, as predicted
    distance_m: float  # from the centre of the road to that of the destination
    slot: int  # of its keys and values; -1: not yet
    next: "Next | None"  # what the model says about the road after it


@dataclass(frozen=True)
class Trip:
    """A generated trip."""

    road: list[int]
    time_s: list[int]  # when each road is entered
    log_time: list[float]  # of each road but the last, log1p(seconds) on it as predicted
    log_prob: float
    status: str  # reached; or what it ends with elsewhere: limit, dead_end, unreachable
    expansions: int  # paths that were extended until it was found

    @staticmethod
    def from_node(node: "Node", status: str, expansions: int) -> "Trip":
        """The path of a node."""
        nodes: list[Node] = []
        log_prob, before = -node, node
        while before is not None:
            nodes.append(before)
            before = before.before
        nodes.reverse()
        return Trip(
            road=[node.road for node in nodes],
            time_s=[node.time_s for node in nodes],
            log_time=[node.log_time for node in nodes[1:]],
            log_prob=log_prob + 0.0,  # not -0
            status=status,
            expansions=expansions,
        )


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model said about the candidates of many paths in one call; those of a path side by side."""

    road: list[int]
    logit: list[float]
    log_prob: list[float]  # of the whole path with the candidate, float32
    seconds: list[int]  # until it is entered
    log_time: list[float]  # log1p(seconds) on the path's last road, as predicted
    distance_m: list[float]  # from its centre to that of the destination
    nodes: list[Node | None]  # what `Next.node` has returned


class Next(NamedTuple):
    """The candidates after a path, in the order of roadmap.rel: rows `begin` to `end` of the answers."""

    answers: Answers
    begin: int
    end: int

    def rows(self) -> dict[int, int]:
        """Each candidate and its row in the answers."""
        return {self.answers.road[row]: row for row in range(self.begin, self.end)}

    def node(self, row: int, before: Node) -> Node:
        """The path with the candidate in a row of the answers."""
        answers = self.answers
        if (node := answers.nodes[row]) is not None:
            return node
        answers.nodes[row] = node = Node(-answers.log_prob[row])
        node.before, node.depth, node.road = before, before.depth + 1, answers.road[row]
        node.time_s, node.log_time = before.time_s + answers.seconds[row], answers.log_time[row]
        node.distance_m, node.slot, node.next = answers.distance_m[row], -1, None
        return node


class PathModel:
    """A trained model that says for many paths at once which road comes next, and when.

    Each path that it has been asked about holds a slot until it is released.
    """

    @torch.no_grad()
    def __init__(self, model: HOSER, network: RoadNetwork, statistics: TimeStatistics):
        """Embed the network.

        Args:
            model: on its device.
            network: the roads.
            statistics: of train.csv.
        """
        model.eval()
        self._model = IncrementalHOSER(model, model.embed_network())
        self.device = model.road2zone.device
        self._tables = RoadTables.from_network(network).to(self.device)
        self.statistics = statistics
        self._first, self._reach = network.reach_ptr.tolist(), network.reach_road.tolist()
        self.cores = FreeCores(self.device)
        self._free: list[int] = []
        self._ancestors = torch.empty(0, 64, dtype=torch.int32, device=self.device)  # [slots, T], of each slot's path
        self._road = torch.empty(0, dtype=torch.int64, device=self.device)  # [slots]
        self._minute = torch.empty(0, device=self.device)  # [slots], of the day

    @property
    def slot_bytes(self) -> int:
        """Memory of a path."""
        return self._model.slot_bytes

    def candidates(self, road: int) -> list[int]:
        """The roads that can be reached from a road."""
        return self._reach[self._first[road] : self._first[road + 1]]

    def start(self, query: Query) -> Node:
        """The path of the origin alone."""
        return self.starts([query])[0]

    def starts(self, queries: Sequence[Query]) -> list[Node]:
        """The path of the origin alone, of each query."""
        ends = torch.tensor([[query.origin, query.destination] for query in queries], device=self.device).view(-1, 2)
        nodes = []
        for query, distance_m in zip(queries, center_distance_m(self._tables, *ends.T).tolist(), strict=True):
            nodes.append(node := Node(0.0))
            node.before, node.depth, node.road = None, 0, query.origin
            node.time_s, node.log_time, node.distance_m = query.start_s, 0.0, distance_m
            node.slot, node.next = -1, None
        return nodes

    def release(self, slots: list[int]) -> None:
        """Give slots back: no path through them is asked about any more."""
        self._free += slots

    @torch.no_grad()
    def extend(self, nodes: Sequence[Node], queries: Sequence[Query]) -> None:
        """Set `next` of each node, whose road has candidates and whose `before` has a slot; `queries` are theirs."""
        self.cores.use()
        depth = np.array([node.depth for node in nodes])
        order = np.argsort(-depth, kind="stable")
        nodes, queries = [nodes[i] for i in order], [queries[i] for i in order]
        for node, slot in zip(nodes, self._take_slots(len(nodes)), strict=True):
            node.slot = slot
        steps, degree, distance_m = self._steps(nodes, queries, depth[order])
        with threads_for(len(nodes)):
            prediction = self._model(steps)
        check_predictions(bool(prediction.logits.isfinite().all()), "generating")
        self._store(nodes, degree, prediction, steps, distance_m)

    def _take_slots(self, number: int) -> list[int]:
        if len(self._free) < number:
            old = self._model.slots
            new = max(FIRST_SLOTS, old + old // 2, old + number)
            self._model.reserve(new)
            self._ancestors, self._road, self._minute = (
                torch.cat([kept, kept.new_zeros(new - old, *kept.shape[1:])])
                for kept in (self._ancestors, self._road, self._minute)
            )
            self._free += range(new - 1, old - 1, -1)
        taken = self._free[-number:]
        del self._free[-number:]
        return taken

    def _steps(self, nodes: list[Node], queries: list[Query], depth: np.ndarray) -> tuple[NextSteps, list[int], Tensor]:
        """What the model reads; the number of candidates of each step; and their distances to the destination [K]."""
        time_s = np.array([node.time_s for node in nodes])
        start_s = np.array([query.start_s for query in queries])
        time_of_day = torch.from_numpy(temporal_info(time_s, is_weekend(start_s))).to(self.device)
        columns = [
            [node.slot for node in nodes],
            [node.slot if node.before is None else node.before.slot for node in nodes],
            [node.road for node in nodes],
            [query.destination for query in queries],
            [self._first[node.road + 1] - self._first[node.road] for node in nodes],
        ]
        slot, before, road, destination, degree = torch.from_numpy(np.array(columns)).to(self.device)
        step, index = ragged_arange(degree, sum(columns[-1]))
        relation = self._tables.reach_ptr.index_select(0, road).index_select(0, step) + index
        candidate = self._tables.reach_road.index_select(0, relation)
        distance_m = center_distance_m(self._tables, candidate, destination.index_select(0, step))
        steps = NextSteps(
            slot=slot,
            road_id=road,
            destination_road_id=destination,
            temporal_info=time_of_day,
            candidate_road_id=candidate,
            step_of_candidate=step,
            metric_distance=metric_distance(distance_m, step, len(nodes)),
            metric_angle=metric_angle(self._tables, road, destination, relation, step),
            groups=tuple(self._groups(slot, before, road, time_of_day * 1440.0, depth)),
        )
        return steps, columns[-1], distance_m

    def _groups(
        self, slot: Tensor, before: Tensor, road: Tensor, minute: Tensor, depth: np.ndarray
    ) -> Iterator[PathGroup]:
        """Write down the paths to the new slots, and cut these (longest first) into runs of similar length."""
        if depth[0] >= self._ancestors.shape[1]:
            self._ancestors = torch.cat([self._ancestors, torch.zeros_like(self._ancestors)], dim=1)
        self._road[slot], self._minute[slot] = road, minute
        self._ancestors[slot] = self._ancestors.index_select(0, before)
        place = torch.from_numpy(depth).to(self.device)
        self._ancestors[slot, place] = slot.int()
        first = 0
        while first < len(depth):
            longest = int(depth[first]) + 1
            last = int(np.searchsorted(-depth, -(GROUP_RATIO * longest - 1), side="right"))
            last = min(max(last, first + GROUP_SIZE), len(depth))
            own = slot[first:last]
            path = self._ancestors.index_select(0, own)[:, :longest]
            past_end = torch.arange(longest, device=self.device) > place[first:last, None]
            path = torch.where(past_end, own.int().unsqueeze(1), path)
            chord = self._tables.center_m[self._road[path]] - self._tables.center_m[road[first:last]].unsqueeze(1)
            yield PathGroup(
                slot=path,
                is_past_end=past_end,
                distance=clipped_km(chord.square().sum(-1).sqrt()),
                time_interval=clipped_interval(self._minute[path] - minute[first:last, None]),
            )
            first = last

    def _store(
        self, nodes: list[Node], degrees: list[int], prediction: Prediction, steps: NextSteps, distance_m: Tensor
    ) -> None:
        """Set `next` of each node."""
        probability = segment_softmax(prediction.logits, steps.step_of_candidate, len(nodes))
        so_far = torch.tensor([-node for node in nodes], dtype=torch.float32, device=self.device)
        log_prob = probability.log() + so_far.index_select(0, steps.step_of_candidate)
        log_time = prediction.time_pred.double() * self.statistics.std + self.statistics.mean
        answers = Answers(
            road=steps.candidate_road_id.tolist(),
            logit=prediction.logits.tolist(),
            log_prob=log_prob.tolist(),
            seconds=log_time.expm1().clamp(min=0.0).round().long().tolist(),
            log_time=log_time.tolist(),
            distance_m=distance_m.tolist(),
            nodes=[None] * len(log_prob),
        )
        begin = 0
        for node, degree in zip(nodes, degrees, strict=True):
            node.next = Next(answers, begin, begin + degree)
            begin += degree
