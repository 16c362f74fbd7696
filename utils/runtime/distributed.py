"""The processes of a training run: one alone, or those that torchrun starts, each with its share of every batch."""

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError
from utils.runtime.progress import HIDDEN
from utils.runtime.terminal import log_to_terminal

# The main process computes what is missing (zones, a teacher's scores) while the others wait: hours, maybe.
TIMEOUT = timedelta(days=2)


@dataclass(frozen=True)
class Processes:
    """All processes of the run, seen from one of them."""

    rank: int = 0  # of this process
    world_size: int = 1
    local_rank: int = 0  # among those on its machine

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all processes, each of which must call it."""
        if self.world_size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The main process runs the block, then the others do: they find what it has written."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def check_same(self, what: str, digest: Callable[[], str]) -> None:
        """Make sure that all processes have the same digest; one process alone does not compute it.

        Raises:
            UserError: they differ; on all processes.
        """
        if self.world_size == 1:
            return
        digests: list[str] = [""] * self.world_size
        dist.all_gather_object(digests, digest())
        if len(set(digests)) > 1:
            raise UserError(f"{what}: differs between the {self.world_size} processes; all must read the same files")

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, or a wrapper that averages the gradients of all processes."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


ALONE = Processes()


def join_processes() -> Processes:
    """The processes that torchrun has started; without it, this process alone.

    All but the main process log errors only.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        return ALONE
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_RANK", "0")))
    if not processes.is_main:
        log_to_terminal("ERROR", f"process {processes.rank}: ")
        os.environ[HIDDEN] = "1"
    # Both, since numbers on the host are added up as well.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)
    return processes
