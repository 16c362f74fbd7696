"""The device that a run computes on, and its random numbers."""

import contextlib
import ctypes
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import nn
from torch.overrides import TorchFunctionMode

from utils.errors import UserError
from utils.runtime.distributed import ALONE, Processes

# Parameters of mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def set_seed(seed: int) -> None:
    """Seed every generator there is."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries may draw from it
    torch.manual_seed(seed)


def choose_device(cuda: int, processes: Processes = ALONE, varied_shapes: bool = False) -> torch.device:
    """The GPU with number `cuda`; the CPU for -1, or, with one warning, for 0 where there is no CUDA.

    Of several processes on a machine the first takes that GPU, and each other one the next. On the CPU, the process is
    set up to reuse its memory: see `keep_freed_memory`, which `varied_shapes` is for.

    Raises:
        UserError: the machine has fewer GPUs.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cuda == -1 or (cuda == 0 and count == 0):
        if cuda == 0:
            logger.warning("CUDA is not available: using the CPU")
        keep_freed_memory(varied_shapes)
        return torch.device("cpu")
    cuda += processes.local_rank
    if not 0 <= cuda < count:
        have = f"{count} GPU{'s' * (count != 1)}" if count else "no GPU"
        raise UserError(
            f"--cuda {cuda}: this machine has {have}; expected "
            + (f"0 to {count - 1}, or -1 for the CPU" if count else "0 or -1, which use the CPU")
        )
    return torch.device("cuda", cuda)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Parameters made in the block have shapes, but neither memory nor values: they are on the meta device."""
    with torch.device("meta"), _WithoutNormalValues():
        yield


class _WithoutNormalValues(TorchFunctionMode):
    """Leaves out `nn.init.normal_`: on the meta device it imports torch._dynamo, for as long as to import torch."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.init.normal_:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def keep_freed_memory(varied_shapes: bool = False) -> None:
    """Keep what this process frees for what it asks for next, instead of handing it back to the system.

    A training step frees hundreds of large buffers, and the next one asks for them again. The system fills what it
    hands out with zeros, page by page: that was a third of a step. With another C library than GNU's nothing changes.

    Freed buffers fit together again only if nothing that lives longer lies between them. oneDNN, which computes GELU,
    keeps something small of its last 1,024 operations, for others of the same shape. In training nearly every batch has
    a shape of its own, and each epoch on 43,800 roads took a gigabyte more. So there it keeps nothing, unless the user
    says how much.

    Args:
        varied_shapes: whether nearly all operations to come have shapes of their own, as in training and evaluation.
            It must be said before the first of them.
    """
    if varied_shapes:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
