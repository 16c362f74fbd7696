"""As many threads as there are cores that other programs leave.

PyTorch splits each operation among threads, and a thread that is done spins until the others are. Where more threads
are busy than there are cores, of this program and of others, they keep each other from running, and nearly all the time
is spent spinning: on two cores, two runs at once took up to thirty times as long as one. So the number of threads
follows the load of the machine, every half a second. Results do not depend on it (models/thread_count.py).

Who sets OMP_NUM_THREADS or MKL_NUM_THREADS has that number. Then, and where products depend on the number of threads or
the load is not known, programs take turns instead (utils/runtime/turns.py).
"""

import functools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from loguru import logger

from models.thread_count import FEW_ROWS
from utils.runtime.turns import Turns, own_cores

Item = TypeVar("Item")

LOOK_S = 0.5
# With two threads and so much of a core taken, the slower of them is no faster than one thread alone.
SPARE_CORE = 0.45
# Up to how many threads products with FEW_ROWS were seen not to depend on them.
MOST_THREADS = 32
FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
STAT = Path("/proc/stat")


def on_free_cores(items: Iterable[Item], device: torch.device) -> Iterator[Item]:
    """The same items; each is worked on with the threads that other programs leave room for.

    Args:
        items: what a loop that computes goes through, such as batches.
        device: where it computes.
    """
    with FreeCores(device) as cores:
        for item in items:
            cores.use()
            yield item


class FreeCores:
    """The threads of a loop that computes."""

    def __init__(self, device: torch.device):
        self._most = torch.get_num_threads()
        # Several processes of one run have a thread each (torchrun's default), or what their user says.
        self._shares = device.type == "cpu" and self._most > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1
        self._follows_load = (
            LOAD.followed and self._most <= MOST_THREADS and STAT.exists() and not any(map(os.environ.get, FIXED_BY))
        )
        self._turns: Turns | None = None

    def __enter__(self) -> "FreeCores":
        return self

    def __exit__(self, *error: object) -> None:
        if self._turns is not None:
            self._turns.close()
        torch.set_num_threads(self._most)

    def use(self) -> None:
        """Call it between two pieces of work, of a second at most."""
        if not self._shares:
            return
        if not self._follows_load:
            self._turns = self._turns or Turns.open(self._most)
            if self._turns is not None:
                self._turns.take()
            return
        free = LOAD.free_cores()
        if free is None:  # looked a moment ago
            return
        threads = min(max(int(free + 1 - SPARE_CORE), 1), self._most)
        if threads == torch.get_num_threads():
            return
        if not same_products(self._most, threads):
            self._follows_load = False
            torch.set_num_threads(self._most)
            return
        torch.set_num_threads(threads)
        if not LOAD.told:
            LOAD.told = True
            logger.info(f"other programs are busy: {threads} of {self._most} threads now; results do not depend on it")


class Load:
    """What other programs take of the cores that this one may use."""

    def __init__(self) -> None:
        self._since = self._now()
        self.followed = True  # by the number of threads; not by that of compiled code
        self.told = False  # that the number of threads follows it

    def free_cores(self) -> float | None:
        """How many are free, on average since the last call that gave a number; None before `LOOK_S` are over."""
        if time.monotonic() - self._since[0] < LOOK_S:
            return None
        (before_s, taken_before_s, own_before_s), now = self._since, self._now()
        self._since = now
        others = ((now[1] - taken_before_s) - (now[2] - own_before_s)) / (now[0] - before_s)
        return len(own_cores()) - max(others, 0.0)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Time, and since the start of each: what all programs took of the cores, what this one took; in seconds."""
        return time.monotonic(), _taken_s(), time.process_time()


def _taken_s() -> float:
    """Seconds that the cores have worked. A row of /proc/stat: core, user, nice, system, idle, iowait, irq, softirq."""
    if not STAT.exists():
        return 0.0
    names = {f"cpu{core}" for core in own_cores()}
    rows = [line.split() for line in STAT.read_text().splitlines() if line.startswith("cpu")]
    ticks = sum(int(row[i]) for row in rows if row[0] in names for i in (1, 2, 3, 6, 7))
    return ticks / os.sysconf("SC_CLK_TCK")


LOAD = Load()  # from the start of the program on, so that the first loop knows it


@functools.cache
def same_products(threads: int, others: int) -> bool:
    """Whether two numbers of threads give the same matrix products to the last bit, on this machine."""
    rng = torch.Generator().manual_seed(0)
    before, same = torch.get_num_threads(), True
    for rows in (FEW_ROWS, FEW_ROWS + 1, 300, 3001):
        x, weight = torch.randn(rows, 256, generator=rng), torch.randn(384, 256, generator=rng)
        found = []
        for number in (threads, others):
            torch.set_num_threads(number)
            y = x @ weight.T
            found.append((y, y @ weight, y.T @ x))  # and the two gradients of a linear layer
        same = same and all(map(torch.equal, *found))
    torch.set_num_threads(before)
    return same
