"""Training an LM-TAD teacher on the tokens of a data set's trips: SOT, those of the roads, EOT.

Where the teacher is to know the destination, its token comes first.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.lmtad import LMTAD, LMTADConfig
from models.ragged import ragged_arange
from models.thread_count import threads_for
from utils.config_sections import TeacherConfig
from utils.data.road_network import RoadNetwork
from utils.data.trips import Trips
from utils.distillation.tokens import RoadTokens
from utils.errors import UserError
from utils.runtime.cores import on_free_cores
from utils.runtime.device import shapes_only
from utils.runtime.memory import available_bytes, memory_advice, readable_gb
from utils.runtime.precision import Precision
from utils.runtime.progress import progress
from utils.runtime.signals import take_signals
from utils.training.engine import READ_BACK, optimizer_step
from utils.training.schedule import Schedule

SPECIAL_TOKENS = ("PAD", "EOT", "SOT")  # behind those of the roads; SOT is the last token
IGNORED = -100  # no target here
# Of training sequences this share begins in the middle of the trip: distillation shows the teacher
# windows that do, with positions counted from their first token.
CROPPED_SHARE = 0.5


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of roads, then PAD, EOT, SOT."""

    road_tokens: int  # how many: cells or roads

    @property
    def size(self) -> int:
        return self.road_tokens + len(SPECIAL_TOKENS)

    @property
    def pad(self) -> int:
        return self.road_tokens

    @property
    def eot(self) -> int:
        return self.road_tokens + 1

    @property
    def sot(self) -> int:
        return self.road_tokens + 2


class TokenTrips:
    """The trips of a split as token sequences on the device."""

    def __init__(
        self,
        trips: Trips,
        tokens: RoadTokens,
        block_size: int,
        batch_size: int,
        device: torch.device,
        destination: bool = False,
    ):
        """With `destination`, its token stands before each sequence, whole or cut; it is no target."""
        self.vocabulary = Vocabulary(tokens.count)
        self.batch_size, self.device = batch_size, device
        self._lead = int(destination)  # tokens before SOT
        self.longest = block_size - self._lead  # tokens of a trip that a sequence has at most
        lengths = np.diff(trips.offset) + 2
        first = np.cumsum(lengths) - lengths
        token = np.empty(lengths.sum(), dtype=np.int64)
        is_road = np.ones(len(token), dtype=bool)
        is_road[first] = is_road[first + lengths - 1] = False
        token[first], token[first + lengths - 1] = self.vocabulary.sot, self.vocabulary.eot
        token[is_road] = tokens.token[trips.road_id]
        self._first, self._length = torch.from_numpy(first), torch.from_numpy(lengths)
        self.token = torch.from_numpy(token).to(device)

    @property
    def data_key(self) -> str:
        """Hash of the sequences."""
        digest = hashlib.blake2b(digest_size=12)
        for tensor in (self.token.cpu(), self._first):
            digest.update(tensor.numpy().data)
        return digest.hexdigest()

    @property
    def num_trips(self) -> int:
        return len(self._length)

    @property
    def num_batches(self) -> int:
        return -(-len(self._length) // self.batch_size)

    def whole(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All trips in the order of the file, cut to the block size."""
        whole = torch.zeros_like(self._length)
        for trip in torch.arange(len(self._length)).split(self.batch_size):
            yield self._batch(trip, whole[trip])

    def shuffled(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training sequences of an epoch; a function of seed and epoch alone."""
        rng = np.random.default_rng([seed, epoch])
        order = torch.from_numpy(rng.permutation(len(self._length)))
        room = (self._length - 2).numpy()  # at least one target is left behind a cut
        skip = np.where(rng.random(len(room)) < CROPPED_SHARE, rng.integers(0, room + 1), 0)
        # A trip longer than a block is seen from all its places in the long run.
        for trip in order.split(self.batch_size):
            yield self._batch(trip, torch.from_numpy(skip)[trip])

    def _batch(self, trip: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets [B, T] of trips [B] without their first `skip` [B] tokens.

        Past a trip's end they are PAD and IGNORED, which nothing before them sees.
        """
        first, length = self._first[trip], self._length[trip]
        steps = (length - skip - 1).clamp(max=self.longest)
        row, place = (index.to(self.device) for index in ragged_arange(steps))
        source = (first + skip).to(self.device)[row] + place
        shape = (len(trip), self._lead + int(steps.max()))
        inputs = torch.full(shape, self.vocabulary.pad, device=self.device)
        targets = torch.full(shape, IGNORED, device=self.device)
        if self._lead:
            inputs[:, 0] = self.token[(first + length - 2).to(self.device)]  # the last road, before EOT
        place = place + self._lead
        inputs[row, place], targets[row, place] = self.token[source], self.token[source + 1]
        return inputs, targets


# Float32 numbers that training keeps for each parameter: itself, its gradient, AdamW's two moments.
NUMBERS_PER_PARAMETER = 4


def make_teacher(config: TeacherConfig, tokens: RoadTokens, device: torch.device) -> LMTAD:
    """A new teacher that reads `tokens`, on `device`.

    Raises:
        UserError: sizes that do not fit together, or a teacher that cannot be trained in this machine's memory.
    """
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout")
    try:
        sizes = LMTADConfig(
            vocab_size=Vocabulary(tokens.count).size, bias=False, **{name: getattr(config, name) for name in names}
        )
    except ValueError as error:
        raise UserError(f"teacher: {error}") from None
    advice = f"{tokens.origin}, each with a row of teacher.n_embd {config.n_embd} numbers; {tokens.fewer}lower n_embd"
    with shapes_only():
        parameters = sum(value.numel() for value in LMTAD(sizes).parameters())
    need, available = 4 * NUMBERS_PER_PARAMETER * parameters, available_bytes(device)
    if available is not None and need > available:
        raise UserError(
            f"a teacher of {parameters:,} parameters takes {readable_gb(need)} in training, and "
            f"{readable_gb(available)} are free; {advice}"
        )
    with memory_advice(advice):
        return LMTAD(sizes).to(device)


def train_teacher_epoch(
    model: LMTAD,
    trips: TokenTrips,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    precision: Precision,
    max_norm: float,
    seed: int,
    epoch: int,
    first_batch: int,
) -> Iterator[list[tuple[int, float]]]:
    """Train one epoch (from 0), whose batches are counted from `first_batch`; yields (batch, loss), some at a time.

    Raises:
        UserError: a loss is not finite.
    """
    model.train()
    torch.manual_seed((seed + 1) * 1_000_003 + epoch)  # dropout
    first_step = epoch * trips.num_batches
    pending: list[Tensor] = []
    title = f"training teacher, epoch {epoch + 1}"
    bar = progress(on_free_cores(trips.shuffled(seed, epoch), trips.device), title, trips.num_batches, "batches")
    for index, (inputs, targets) in enumerate(bar):
        take_signals()
        with threads_for(inputs.numel()):
            with precision.autocast():
                loss = _loss(model, inputs, targets, "mean")
            precision.scaler.scale(loss).backward()
        optimizer_step(optimizer, precision, schedule.lr_at(first_step + index + 1), max_norm)
        pending.append(loss.detach())
        if len(pending) == READ_BACK or index + 1 == trips.num_batches:
            start = first_batch + index + 1 - len(pending)
            records = list(enumerate(torch.stack(pending).tolist(), start))
            if not all(math.isfinite(value) for _, value in records):
                raise UserError(
                    f"the teacher's loss is not finite in epoch {epoch + 1}; a lower teacher.learning_rate may help"
                )
            bar.set_postfix(loss=f"{records[-1][1]:.4f}")
            yield records
            pending = []


@torch.no_grad()
def perplexity(model: LMTAD, trips: TokenTrips, precision: Precision) -> float:
    """exp of the mean cross-entropy per token (roads and EOT) over all trips.

    Raises:
        UserError: it is not a number: the training has diverged.
    """
    model.eval()
    total, tokens = torch.zeros((), dtype=torch.float64, device=trips.device), 0
    for inputs, targets in on_free_cores(trips.whole(), trips.device):
        take_signals()
        with precision.autocast():
            total += _loss(model, inputs, targets, "sum").double()
        tokens += int((targets != IGNORED).sum())
    mean = total.item() / tokens
    if not math.isfinite(mean):
        raise UserError(
            "the teacher's perplexity on val is not finite: its training has diverged (a lower teacher.learning_rate "
            "may help); this epoch is not saved, files already written stay"
        )
    return math.exp(min(mean, 700.0))


def uniform_perplexity(trips: Trips, network: RoadNetwork, tokens: RoadTokens, longest: int) -> float:
    """The perplexity of a guess that knows the road network only: what a teacher's is to be compared with.

    It takes all roads for equally likely as the first, and after each road all its successors and the end of the trip;
    a token gets the sum over its roads. What is counted is what `perplexity` counts: tokens of roads and EOT, at most
    `longest` of a trip.
    """
    road, token = trips.road_id.astype(np.int64), tokens.token
    lengths = np.diff(trips.offset)
    first = trips.offset[:-1]
    place = np.arange(len(road)) - np.repeat(first, lengths)
    degree = np.diff(network.reach_ptr)[road]
    # of the first road, and behind each road
    begin = np.bincount(token, minlength=tokens.count)[token[road[first]]] / network.num_roads
    is_last = np.zeros(len(road), dtype=bool)
    is_last[trips.offset[1:] - 1] = True
    step = np.flatnonzero(~is_last)
    owner = np.repeat(np.arange(len(step)), degree[step])
    relation = np.arange(len(owner)) - np.repeat(np.cumsum(degree[step]) - degree[step], degree[step])
    candidate = network.reach_road[network.reach_ptr[road[step]][owner] + relation]
    same_token = token[candidate] == token[road[step + 1]][owner]
    ways = np.ones(len(road))  # the end of the trip
    ways[step] = np.bincount(owner[same_token], minlength=len(step))
    behind = -np.log(ways / (degree + 1))[place + 1 < longest]
    return float(np.exp((-np.log(begin).sum() + behind.sum()) / (len(begin) + len(behind))))


def _loss(model: LMTAD, inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(
        model(inputs).float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=reduction
    )
