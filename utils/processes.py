"""The processes of a training run: one alone, or those that torchrun starts, each with its part of every batch."""

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError
from utils.progress import HIDDEN

# The first process makes what is missing, zones or a teacher's answers, while the others wait: hours, maybe.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Processes:
    """All processes of the run, seen from one of them."""

    rank: int = 0  # of this one
    count: int = 1
    local_rank: int = 0  # of this one among those on its machine

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; all must ask for it."""
        if self.count == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.sum(torch.zeros(()))

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process does the block, then all others do: they find what it has made."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def check_same(self, what: str, digest: str) -> None:
        """Make sure that all processes have the same, by its hexadecimal `digest`.

        Raises:
            UserError: they have not; on all processes.
        """
        number = int(digest[:12], 16)
        if self.count > 1 and not bool(self.sum(torch.tensor(number)) == number * self.count):
            raise UserError(f"{what}: not the same in all {self.count} processes; expected the same files everywhere")

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, or what computes the same and adds up the gradients of all processes."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


ALONE = Processes()


def join_processes() -> Processes:
    """Join the processes that torchrun has started; without it, this one is alone.

    All but the first fall silent.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        return ALONE
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_RANK", "0")))
    if not processes.is_first:
        logger.remove()
        os.environ[HIDDEN] = "1"
    # Both, since numbers on the host are added up as well.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    return processes
