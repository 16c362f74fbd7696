"""The processes of a training run: one alone, or those that torchrun starts, each with its part of every batch."""

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.command_line import Others, fail_beside, log_to_terminal
from utils.digest import content_digest
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

    def check_same(self, what: str, value: Callable[[], Any]) -> None:
        """Make sure that all processes have the same plain value, which one that is alone is not asked for.

        Raises:
            UserError: they have not; on all processes.
        """
        if self.count == 1:
            return
        number = int(content_digest(value())[:12], 16)
        if self.sum(torch.tensor(number)) != number * self.count:
            raise UserError(f"{what}: not the same in all {self.count} processes; expected the same files everywhere")

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model`, or what computes the same and adds up the gradients of all processes."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)


ALONE = Processes()


class _Failures(Others):
    """Failures of all processes, counted in torchrun's store, which outlives them."""

    def __init__(self, store: dist.Store):
        self._store = store

    def have_failed(self, one_more: bool = False) -> bool:
        try:
            return self._store.add("count", int(one_more)) > one_more
        except RuntimeError:  # torchrun itself has gone
            return False


def join_processes() -> Processes:
    """Join the processes that torchrun has started; without it, this one is alone.

    All but the first tell of nothing but errors, and of these only the first one is told of.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        return ALONE
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_RANK", "0")))
    if not processes.is_first:
        log_to_terminal("ERROR", f"process {processes.rank}: ")
        os.environ[HIDDEN] = "1"
    # Both, since numbers on the host are added up as well.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))
    fail_beside(_Failures(dist.PrefixStore("failures", store)))
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=PATIENCE
    )
    atexit.register(dist.destroy_process_group)
    return processes
