"""On a GPU: the forward and the backward pass of a training step, recorded and replayed as one operation each.

To hand an operation to a GPU takes the processor a while, in which the GPU may be idle, and a step has hundreds. A CUDA
graph is a recording of them, which is replayed on the same memory: so batches are padded to one shape.
"""

import gc
from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from loguru import logger
from torch import Tensor, nn

from models.batch import Batch, Prediction
from models.hoser import HOSER
from utils.data.loader import BatchLoader
from utils.errors import first_line
from utils.runtime.precision import Precision

# Steps of a batch, and pairs of steps of its trips. Larger ones keep a GPU busy anyway, and nothing else can use the
# memory of a graph.
MOST_STEPS, MOST_PAIRS = 2**15, 2**24


class PaddedBatch:
    """Memory of a batch of one shape, into which batches are copied.

    What pads it is left from earlier batches: roads that exist. Nothing that a model computes for a step or a candidate
    depends on those that pad the batch, and they have no part in the loss.
    """

    def __init__(self, loader: BatchLoader):
        """Memory for the batches of a loader that has a `shape`."""
        self.shape, example = loader.shape, _example(loader)
        rows: dict[int, int] = {}  # in the example -> in the memory; numbers may be equal, where there is no choice
        for count, size in zip(_counts(example), self.shape.counts, strict=True):
            rows[count] = max(rows.get(count, 0), size)
        self._tensors = {}
        for name, values in vars(example).items():
            if isinstance(values, Tensor):
                count = len(values) if values.dim() else 0
                if count not in rows:
                    raise RuntimeError(f"Batch.{name} has {count} rows, not one for each trip, step or candidate")
                self._tensors[name] = values.new_zeros(rows[count], *values.shape[1:])
        self.batch = replace(example, **self._tensors, max_candidates=loader.max_candidates)

    def holds(self, batch: Batch) -> bool:
        """Whether a batch fits."""
        return _shapes(batch) == self.shape.groups and all(
            len(getattr(batch, name)) <= len(memory) for name, memory in self._tensors.items()
        )

    def fill(self, batch: Batch) -> None:
        """Copy a batch."""
        for name, memory in self._tensors.items():
            values = getattr(batch, name)
            memory[: len(values)].copy_(values)
        self.batch.slot[len(batch.slot) :].fill_(self.shape.last_place)
        for own, group in zip(self.batch.groups, batch.groups, strict=True):
            for name, values in vars(group).items():
                if isinstance(values, Tensor):
                    getattr(own, name).copy_(values)

    def without_padding(self, values: Tensor, batch: Batch) -> Tensor:
        """Of what was computed for all rows of the memory, that of the batch it was filled with."""
        rows = dict(zip(_counts(self.batch), _counts(batch), strict=True))
        count = len(values) if values.dim() else 0
        if count not in rows:
            raise RuntimeError(f"a prediction has {count} rows, not one for each trip, step or candidate")
        return values[: rows[count]]


def _counts(batch: Batch) -> tuple[int, int, int]:
    """Trips, steps and candidates."""
    return len(batch.trip_len), len(batch.road_id), len(batch.candidate_road_id)


def _example(loader: BatchLoader) -> Batch:
    """A batch that has the loader's shape; nearly all have."""
    random = np.random.default_rng(0)
    while True:
        batch = loader.batch(random.permutation(loader.num_trips)[: loader.shape.num_trips])
        if _shapes(batch) == loader.shape.groups:
            return batch


def _shapes(batch: Batch) -> tuple[tuple[int, int], ...]:
    return tuple((group.num_trips, group.max_len) for group in batch.groups)


class _OfMemory(nn.Module):
    """The model, applied to the batch in the memory, in the precision of training."""

    def __init__(self, model: HOSER, precision: Precision, batch: Batch):
        super().__init__()
        self.model, self._precision, self._batch = model, precision, batch

    def forward(self) -> dict[str, Tensor]:
        with self._precision.autocast(cache_enabled=False):
            values = vars(self.model(self._batch))
        if not all(isinstance(each, Tensor) for each in values.values()):
            raise RuntimeError("a prediction has values that are no tensors")
        return values


class RecordedModel:
    """`model(batch)` in training steps, replayed once it is recorded. Batches that do not fit are computed as ever.

    What it returns, and the gradients of the parameters, are the graph's memory, which the next step overwrites: the
    gradients of two passes cannot be added up. The model itself is as it was, and computes as ever.
    """

    def __init__(self, model: HOSER, precision: Precision, loader: BatchLoader):
        self._model, self._precision, self._loader = model, precision, loader
        self._memory: PaddedBatch | None = None
        self._replay: nn.Module | None = None
        self._is_tried = False

    def replays(self, batch: Batch) -> bool:
        """Whether it is recorded, and the batch fits."""
        return self._replay is not None and self._memory.holds(batch)

    def record(self) -> None:
        """Record the model in training mode, once; no other thread may use the GPU meanwhile."""
        loader = self._loader
        if self._is_tried or loader.mean_steps > MOST_STEPS:
            return
        self._is_tried, shape = True, loader.common_shape()
        if shape.num_steps > MOST_STEPS or shape.num_pairs > MOST_PAIRS:
            return
        loader.shape = shape
        try:
            self._memory, self._replay = self._recording()
        except RuntimeError as error:  # too little memory; operations that wait for the GPU, in a changed model
            loader.shape = None
            logger.warning(
                f"training.cuda_graph: a training step cannot be recorded ({first_line(error)}); it has no effect, "
                "and steps take longer"
            )
        else:
            logger.info("training.cuda_graph: a training step is recorded, and replayed from now on")
        # The memory of what was tried out first; that of a failed recording, which refers to itself.
        gc.collect()
        torch.cuda.empty_cache()

    def _recording(self) -> tuple[PaddedBatch, nn.Module]:
        """The memory, and what replays the model on the batch in it."""
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # the library's recording causes it
        torch.cuda.graph.default_capture_stream = None  # made for the device of the first recording of all
        device = self._precision.device
        # The current device's operations are recorded, and a recording that fails may leave another stream behind.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            memory = PaddedBatch(self._loader)
            forward = _OfMemory(self._model, self._precision, memory.batch)
            replay = torch.cuda.make_graphed_callables(forward, (), allow_unused_input=True)
            outputs = [memory.without_padding(values, memory.batch) for values in replay().values()]
            copy_shared_gradients([each for each in self._model.parameters() if each.requires_grad], outputs)
        return memory, replay

    def __call__(self, batch: Batch) -> Prediction:
        """Scores and times, see `HOSER.forward`."""
        if not self.replays(batch):
            return self._model(batch)
        self._memory.fill(batch)
        values = self._replay()
        return Prediction(**{name: self._memory.without_padding(each, batch) for name, each in values.items()})


def copy_shared_gradients(parameters: list[nn.Parameter], outputs: list[Tensor]) -> None:
    """Let each parameter have a gradient of its own where several get the same memory, as those of a sum do.

    Autograd sees to that, except for what a replay returns; what changes gradients in place would do so twice.
    """
    sums = [values.float().sum() for values in outputs if values.requires_grad]
    gradients = torch.autograd.grad(sums, parameters, allow_unused=True)
    memory = [None if gradient is None else gradient.untyped_storage().data_ptr() for gradient in gradients]
    owners = Counter(memory)
    for parameter, place in zip(parameters, memory, strict=True):
        if place is not None and owners[place] > 1:
            parameter.register_hook(torch.clone)
