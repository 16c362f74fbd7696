"""What a GPU does in an epoch of training: how long it takes, and how much of that time the GPU computes."""

import itertools
import time
from collections.abc import Iterator

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from models.batch import Batch
from utils.data.loader import BatchLoader
from utils.training.engine import Learner, train_epoch
from utils.training.losses import HOSERLoss

WARM_UP_STEPS = 20
PROFILED_STEPS = 20  # (a thread makes one batch more)
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")  # (the profiler synchronises the device)

MEANINGS = {
    "gpu_epoch_s": "training steps of an epoch, as train.py runs them",
    "gpu_step_ms": "one of them",
    "gpu_computes_ms": "of that, the GPU computes",
    "gpu_busy_share": "gpu_computes_ms / gpu_step_ms",
    "gpu_operations_per_step": "operations that it carries out",
    "gpu_launches_per_step": "times that the processor hands it one of them, or a graph of many",
    "gpu_waits_per_step": "times that the program waits for it",
    "gpu_peak_memory_mb": "peak memory that training takes of the GPU",
}


def measure_gpu(learner: Learner, loader: BatchLoader, loss_function: HOSERLoss) -> dict[str, float]:
    """Figures by name, see `MEANINGS`: an epoch as `train.py` runs it, after some steps to warm up."""
    device = loader.device
    _run(learner, FirstBatches(loader, WARM_UP_STEPS), loss_function)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    _run(learner, loader, loss_function)
    torch.cuda.synchronize(device)
    taken_s = time.perf_counter() - began
    figures = {"gpu_epoch_s": taken_s, "gpu_step_ms": 1e3 * taken_s / loader.num_batches}
    figures["gpu_peak_memory_mb"] = torch.cuda.max_memory_reserved(device) / 1e6

    steps = max(min(PROFILED_STEPS, loader.num_batches - 1), 1)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        _run(learner, FirstBatches(loader, steps), loss_function)
    events = profiler.events()
    kernels = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    launches = sum(event.name.startswith(LAUNCHES) for event in events)
    waits = sum(event.name in WAITS for event in events)
    figures["gpu_computes_ms"] = sum(event.device_time_total for event in kernels) / 1e3 / steps
    figures["gpu_busy_share"] = figures["gpu_computes_ms"] / figures["gpu_step_ms"]
    figures["gpu_operations_per_step"] = len(kernels) / steps
    figures["gpu_launches_per_step"] = launches / steps
    figures["gpu_waits_per_step"] = waits / steps
    return figures


def _run(learner: Learner, loader: "BatchLoader | FirstBatches", loss_function: HOSERLoss) -> None:
    for _ in train_epoch(learner, loader, loss_function, 0, 0, 0):
        pass


class FirstBatches:
    """A loader whose epoch breaks off after some batches, so that at its end no losses are read back."""

    def __init__(self, loader: BatchLoader, number: int):
        self._loader, self._number = loader, number

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        return itertools.islice(self._loader.shuffled(seed, epoch), self._number)
