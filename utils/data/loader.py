"""Batches: trips as flat arrays on the device -> `Batch`, computed in one go for all steps of a batch."""

import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from models.batch import AttentionGroup, Batch
from models.ragged import ragged_arange
from utils.config import Config
from utils.data.batch_shape import BatchShape, common_shape
from utils.data.dataset import City
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
from utils.data.trips import TimeStatistics, Trips
from utils.data.zones import count_transitions
from utils.files.checksums import content_digest
from utils.runtime.distributed import ALONE, Processes
from utils.runtime.one_ahead import one_ahead

# A group of trips padded together holds trips of at least this share of its longest, and on a GPU any trips up to this
# many pairs of steps: padding costs a CPU more than another group does, and a GPU less.
GROUP_RATIO = {"cpu": 0.75, "cuda": 0.25}
GROUP_PAIRS = {"cpu": 0, "cuda": 2**23}


def time_of_day(trips: Trips) -> np.ndarray:
    """Time of day in days of each position, [P] float32; negative where the trip began on a weekend."""
    weekend = is_weekend(trips.time_s[trips.offset[:-1]])
    return temporal_info(trips.time_s, np.repeat(weekend, np.diff(trips.offset)))


class BatchLoader:
    """The trips of a split as flat arrays on a device, and batches of them.

    A batch is ragged: trips differ in length and steps in their number of candidates. Nothing is padded (but within
    the groups of the attention); values of one kind lie one after the other. B = 2 trips, the second one shorter:

        trips           |      roads 7 3 9 4          |   roads 5 3 9   |   the last road is the destination
        steps [S = 5]   |  7        3          9      |   5        3    |   trip_of_step      0 0 0 1 1
        candidates [K]  | 3 8    9 2 6      4         |  1 3    9 2 6   |   step_of_candidate 0 0 1 1 1 2 3 3 4 4 4
        candidate_index | 0 1    0 1 2      0         |  0 1    0 1 2   |   within the step
        label [S]       |  0        0          0      |   1        0    |   index of the road that was taken
        label_candidate |  0        2          5      |   7        8    |   its row among the K candidates

    Values of steps reach candidates by `values[step_of_candidate]`; sums over a step's candidates are segment sums.
    """

    def __init__(
        self,
        trips: Trips,
        tables: RoadTables,
        statistics: TimeStatistics,
        batch_size: int,
        device: torch.device | str = "cpu",
        processes: Processes = ALONE,
    ):
        self.batch_size, self.processes = batch_size, processes
        self.shape: BatchShape | None = None  # whose groups the batches have, where it holds their trips
        self.statistics = statistics
        self.device = torch.device(device)
        self.tables = tables.to(self.device)
        # Sizes stay on the host: shapes must be known without waiting for the device.
        self._first = np.ascontiguousarray(trips.offset[:-1])
        self._trip_len = np.diff(trips.offset) - 1
        self._count_candidates(trips, tables)
        self.road_id = torch.from_numpy(np.asarray(trips.road_id)).to(self.device)
        self.label = torch.from_numpy(np.asarray(trips.label)).to(self.device)
        self.time_s = torch.from_numpy(np.asarray(trips.time_s)).to(self.device)
        self.temporal_info = torch.from_numpy(time_of_day(trips)).to(self.device)

    def _count_candidates(self, trips: Trips, tables: RoadTables) -> None:
        """Candidates of each trip's steps: their number, and the most of a step."""
        degree = np.diff(tables.reach_ptr.cpu().numpy()).astype(np.int32)[trips.road_id]
        degree[trips.offset[1:] - 1] = 0  # a destination is no step
        self._degree = degree
        self._trip_candidates = np.add.reduceat(degree, self._first, dtype=np.int64)
        self._trip_max_candidates = np.maximum.reduceat(degree, self._first)

    @property
    def num_trips(self) -> int:
        return len(self._trip_len)

    @property
    def num_batches(self) -> int:
        return -(-self.num_trips // self.batch_size)

    @property
    def num_candidates(self) -> int:
        """Candidates of all steps of all trips."""
        return int(self._trip_candidates.sum())

    @property
    def max_candidates(self) -> int:
        """The most candidates of a step."""
        return int(self._trip_max_candidates.max())

    @property
    def mean_steps(self) -> float:
        """Steps of a batch, on average."""
        return int(self._trip_len.sum()) / self.num_batches

    def common_shape(self) -> BatchShape:
        """A shape to which nearly all shuffled batches can be padded."""
        return common_shape(self._trip_len, self._trip_candidates, self.batch_size)

    @property
    def first_position(self) -> np.ndarray:
        """Position of each trip's first road, [trips] int64."""
        return self._first

    @property
    def degree(self) -> np.ndarray:
        """Candidates of each position, [P] int32; 0 at a destination."""
        return self._degree

    def steps_with_choice(self, last_only: bool = False) -> int:
        """Steps that have two candidates or more; of each trip's last steps only, if asked."""
        degree = self._degree[self._first + self._trip_len - 1] if last_only else self._degree
        return int((degree > 1).sum())

    @property
    def has_one_step_trips_only(self) -> bool:
        return int(self._trip_len.max()) == 1

    @functools.cached_property
    def first_candidate(self) -> Tensor:
        """Place of each position's first candidate among those of all trips in the order of the file, [P]."""
        return torch.from_numpy(np.cumsum(self._degree, dtype=np.int64) - self._degree)

    @functools.cached_property
    def trips_key(self) -> str:
        """Hash of the trips: roads and times."""
        return content_digest([self.road_id, self.time_s, torch.from_numpy(self._first)])

    @functools.cached_property
    def data_key(self) -> str:
        """Hash of the trips and of what is reachable."""
        digest = hashlib.blake2b(digest_size=12)
        for tensor in (self.road_id, self.time_s, self.first_candidate, self.tables.reach_road, self.tables.reach_ptr):
            digest.update(tensor.cpu().contiguous().numpy().data)
        digest.update(np.ascontiguousarray(self._first).data)
        return digest.hexdigest()

    def candidate_range(self, first_trip: int, last_trip: int) -> tuple[int, int]:
        """Places of the candidates of trips [first_trip, last_trip) among those of all trips."""
        begin = int(self._trip_candidates[:first_trip].sum())
        return begin, begin + int(self._trip_candidates[first_trip:last_trip].sum())

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Batches of a plain shuffle that depends on (seed, epoch) alone, so that nothing need be saved."""
        return self._batches(np.random.default_rng([seed, epoch]).permutation(self.num_trips))

    def in_order(self) -> Iterator[Batch]:
        """Batches in the order of the file."""
        return self._batches(np.arange(self.num_trips))

    def _batches(self, order: np.ndarray) -> Iterator[Batch]:
        starts = range(0, len(order), self.batch_size)
        batches = (self.batch(*self._own_part(order[start : start + self.batch_size])) for start in starts)
        # Handing operations to a GPU takes time of the processor: a thread prepares the next batch meanwhile.
        return one_ahead(batches) if self.device.type == "cuda" else batches

    def _own_part(self, trip_index: np.ndarray) -> tuple[np.ndarray, float]:
        """What this process has of a batch: every n-th trip by length, for n processes, and its share of the steps."""
        if self.processes.world_size == 1:
            return trip_index, 1.0
        trip_index = self._longest_first(trip_index)
        own = trip_index[self.processes.rank :: self.processes.world_size]
        if not len(own):
            return trip_index[-1:], 0.0  # something to take part with
        return own, float(self._trip_len[own].sum() / self._trip_len[trip_index].sum())

    def _longest_first(self, trip_index: np.ndarray) -> np.ndarray:
        return trip_index[np.argsort(-self._trip_len[trip_index], kind="stable")]

    def batch(self, trip_index: np.ndarray, share: float = 1.0) -> Batch:
        """The trips `trip_index` [B] as one batch, in descending order of length; `share` is kept in it."""
        trip_index = self._longest_first(trip_index)
        host_len, device = self._trip_len[trip_index], self.device
        num_steps = int(host_len.sum())
        first = torch.from_numpy(self._first[trip_index]).to(device, non_blocking=True)
        trip_len = torch.from_numpy(host_len).to(device, non_blocking=True)

        trip, place = ragged_arange(trip_len, num_steps)
        position = first[trip] + place
        road = self.road_id[position].long()
        destination = self.road_id[first + trip_len].long()

        num_candidates = int(self._trip_candidates[trip_index].sum())
        first_relation = self.tables.reach_ptr[road]
        candidate_len = self.tables.reach_ptr[road + 1] - first_relation
        step, index = ragged_arange(candidate_len, num_candidates)
        relation = first_relation[step] + index
        candidate = self.tables.reach_road[relation]

        distance_m = center_distance_m(self.tables, candidate, destination[trip][step])

        label = self.label[position].long()
        seconds = (self.time_s[position + 1] - self.time_s[position]).float()
        log_time = (seconds.log1p() - self.statistics.mean) / self.statistics.std
        time_of_day = self.temporal_info[position]
        shapes = self._group_shapes(host_len)
        first_place = torch.from_numpy(_first_places(shapes)[: len(host_len)]).to(device, non_blocking=True)
        slot = first_place[trip] + place
        return Batch(
            trip_index=torch.from_numpy(trip_index).to(device, non_blocking=True),
            trip_len=trip_len,
            destination_road_id=destination,
            position=position,
            road_id=road,
            trip_of_step=trip,
            temporal_info=time_of_day,
            candidate_len=candidate_len,
            candidate_road_id=candidate,
            step_of_candidate=step,
            candidate_index=index,
            metric_distance=metric_distance(distance_m, step, num_steps),
            metric_angle=metric_angle(self.tables, road, destination[trip], relation, step),
            label=label,
            label_candidate=candidate_len.cumsum(0) - candidate_len + label,
            log_time=log_time,
            max_candidates=int(self._trip_max_candidates[trip_index].max()),
            slot=slot,
            groups=self._groups(shapes, slot, road, time_of_day),
            share=share,
        )

    def _group_shapes(self, length: np.ndarray) -> Sequence[tuple[int, int]]:
        """Cut the trips (lengths descending) into runs: trips and places of each, (G, T).

        They are those of `shape` if it holds these trips, else as `GROUP_RATIO` and `GROUP_PAIRS` say.
        """
        if self.shape is not None and self.shape.holds(length):
            return self.shape.groups
        ratio, pairs = GROUP_RATIO[self.device.type], GROUP_PAIRS[self.device.type]
        shapes, first = [], 0
        while first < len(length):
            longest = int(length[first])
            last = int(np.searchsorted(-length, -ratio * longest, side="right"))
            last = max(last, min(first + pairs // longest**2, len(length)))
            shapes.append((last - first, longest))
            first = last
        return shapes

    def _groups(
        self, shapes: Sequence[tuple[int, int]], slot: Tensor, road: Tensor, time_of_day: Tensor
    ) -> tuple[AttentionGroup, ...]:
        """Groups of these shapes, of the steps at these places."""
        sizes = [trips * places for trips, places in shapes]
        center, minute = (
            values.new_zeros(sum(sizes), *values.shape[1:]).index_copy_(0, slot, values).split(sizes)
            for values in (self.tables.center_m[road], time_of_day * 1440.0)
        )
        return tuple(
            AttentionGroup(
                num_trips=shape[0],
                max_len=shape[1],
                distance=clipped_km(_chords_m(center[i].unflatten(0, shape))),
                time_interval=clipped_interval(_differences(minute[i].unflatten(0, shape))),
            )
            for i, shape in enumerate(shapes)
        )


def _first_places(shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Place of the first step of each trip, in groups of these shapes that lie one after the other, [trips] int64."""
    size = np.repeat([places for _, places in shapes], [trips for trips, _ in shapes])
    return np.cumsum(size) - size


def _chords_m(center_m: Tensor) -> Tensor:
    """Distances between road centres [G, T, 3], [G, T, T]."""
    if center_m.is_cuda:  # cdist is slow there with three coordinates
        return (center_m.unsqueeze(2) - center_m.unsqueeze(1)).square_().sum(-1).sqrt_()
    return torch.cdist(center_m, center_m, compute_mode="donot_use_mm_for_euclid_dist")


def _differences(values: Tensor) -> Tensor:
    """Of each pair: [G, T] -> [G, T, T]."""
    return values.unsqueeze(2) - values.unsqueeze(1)


def make_loaders(
    city: City, config: Config, device: torch.device | str, processes: Processes = ALONE
) -> dict[str, BatchLoader]:
    """Loaders of train, val and test; the time statistics of all are those of train.

    Each of several `processes` gets its part of every batch.
    """
    trips = {split: city.trips(split) for split in ("train", "val", "test")}
    counted = count_transitions(city.features.road2zone.numpy(), trips["train"])
    zones = len(counted)
    if counted.sum() != city.transitions.sum() or not np.array_equal(city.transitions[:zones, :zones], counted):
        logger.warning(
            "zone_trans_mat.npy does not count the transitions of train.csv; it is used as it is (delete it to have "
            "it counted again)"
        )
    tables, statistics = RoadTables.from_network(city.network).to(device), TimeStatistics.from_trips(trips["train"])
    batch_size = config.optimizer_config.batch_size
    return {split: BatchLoader(trips[split], tables, statistics, batch_size, device, processes) for split in trips}


def data_keys(loaders: dict[str, BatchLoader]) -> dict[str, str]:
    """Hashes of the trips that training depends on, and of what is reachable, by what they are."""
    train, val = loaders["train"], loaders["val"]
    return {
        "training data": train.trips_key,
        "validation data": val.trips_key,
        "reachable roads": content_digest([train.tables.reach_ptr, train.tables.reach_road]),
    }
