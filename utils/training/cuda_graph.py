"""On a GPU: the forward and the backward pass of a training step, recorded and replayed as one operation each.

To hand an operation to a GPU takes the processor a while, in which the GPU may be idle, and a step has hundreds. A CUDA
graph is a recording of them, which is replayed on the same memory: so batches are padded to one shape.
"""

from dataclasses import replace

import numpy as np
import torch
from loguru import logger
from torch import Tensor, nn

from models.batch import Batch, Prediction
from models.hoser import HOSER
from utils.data.loader import BatchLoader
from utils.runtime.precision import Precision

# Steps of a batch. Larger ones keep a GPU busy anyway, and a graph's memory is used by nothing else.
MOST_STEPS = 2**15


class PaddedBatch:
    """Memory of a batch of one shape, into which batches are copied.

    What pads it is left from earlier batches: roads that exist. Nothing that a model computes for a step or a candidate
    depends on those that pad the batch, and they have no part in the loss.
    """

    def __init__(self, loader: BatchLoader):
        """Memory for the batches of a loader that has a `shape`."""
        self.shape, example = loader.shape, _example(loader)
        rows: dict[int, int] = {}  # in the example -> in the memory; numbers may be equal, where there is no choice
        for values, size in (
            (example.trip_len, self.shape.num_trips),
            (example.road_id, self.shape.num_steps),
            (example.candidate_road_id, self.shape.num_candidates),
        ):
            rows[len(values)] = max(rows.get(len(values), 0), size)
        self._tensors = {
            name: values.new_zeros(rows[len(values)], *values.shape[1:])
            for name, values in vars(example).items()
            if isinstance(values, Tensor)
        }
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
    """The model applied to what stands in the memory, in the precision of training."""

    def __init__(self, model: HOSER, precision: Precision, batch: Batch):
        super().__init__()
        self.model, self._precision, self._batch = model, precision, batch

    def forward(self) -> tuple[Tensor, Tensor]:
        with self._precision.autocast(cache_enabled=False):
            prediction = self.model(self._batch)
        return prediction.logits, prediction.time_pred


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

    @property
    def is_recorded(self) -> bool:
        """Whether steps are replayed."""
        return self._replay is not None

    def record(self) -> None:
        """Record the model in training mode, once; no other thread may use the GPU meanwhile."""
        if self._is_tried:
            return
        self._is_tried = True
        shape = self._loader.common_shape()
        if shape.num_steps > MOST_STEPS:
            return
        self._loader.shape = shape
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # the library's recording causes it
        device = self._precision.device
        try:
            # The current device's operations are recorded, and a recording that fails may leave another stream behind.
            with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
                memory = PaddedBatch(self._loader)
                replay = torch.cuda.make_graphed_callables(_OfMemory(self._model, self._precision, memory.batch), ())
        except RuntimeError as error:  # too little memory; operations that wait for the GPU, in a changed model
            self._loader.shape = None
            logger.warning(
                f"training.cuda_graph: a training step cannot be recorded ({_first_line(error)}); it has no effect, "
                "and steps take longer"
            )
        else:
            self._memory, self._replay = memory, replay
        torch.cuda.empty_cache()  # what was needed to try the step out

    def __call__(self, batch: Batch) -> Prediction:
        """Scores and times, see `HOSER.forward`."""
        if self._replay is None or not self._memory.holds(batch):
            return self._model(batch)
        self._memory.fill(batch)
        logits, time_pred = self._replay()
        candidates = len(batch.candidate_road_id)
        return Prediction(logits[:candidates], time_pred[:candidates])


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
