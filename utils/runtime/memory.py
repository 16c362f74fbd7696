"""Memory that runs out: which setting needs less of it."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import torch
from loguru import logger

from utils.errors import UserError, first_line

# What helps while batches are on their way through the student, or through the teacher.
SMALLER_BATCHES = "lower optimizer_config.batch_size"
SMALLER_TEACHER_BATCHES = "lower teacher.batch_size"
SMALLER_WINDOW = "lower distill.window, or take a smaller teacher"

CGROUP = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Where memory runs out in the block, say what would need less of it.

    Raises:
        UserError: in the place of the error of NumPy or torch.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        logger.bind(file_only=True).opt(exception=error).info("memory ran out")  # it may be a mistake in the code
        where = "the GPU's" if isinstance(error, torch.OutOfMemoryError) else "this machine's"
        raise UserError(f"{where} memory is full ({first_line(error)}); {advice}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had: torch says so of the CPU in a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        type(error) is RuntimeError and "can't allocate memory" in str(error)
    )


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on `device`; None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    for limit, used in CGROUP:  # of a container, or of a job of a cluster
        with contextlib.suppress(OSError, ValueError):  # ValueError: `max`
            limits.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)  # `ulimit -v`
    if allowed != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits.append(allowed - pages * resource.getpagesize())
    return min(limits, default=None)


def readable_gb(size_bytes: int) -> str:
    """A number of bytes in gigabytes."""
    return f"{size_bytes / 1e9:,.1f} GB"
