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
    """What a loop that computes asks before each piece of work. The number of threads stays when the loop ends."""

    def __init__(self, device: torch.device):
        # Several processes of one run have a thread each (torchrun's default), or what their user says.
        self._shares = device.type == "cpu" and int(os.environ.get("WORLD_SIZE", "1")) == 1
        self._turns: Turns | None = None

    def use(self) -> None:
        """Call it between two pieces of work, of a second at most."""
        if not self._shares or (most := THREADS.most()) == 1:
            return
        if THREADS.follow(LOAD):
            return
        self._turns = self._turns or Turns.open(most)
        if self._turns is not None:
            self._turns.take()

    def __enter__(self) -> "FreeCores":
        return self

    def __exit__(self, *error: object) -> None:
        """Programs that take turns need not wait for this one."""
        if self._turns is not None:
            self._turns.close()
            self._turns = None


class Load:
    """What other programs take of the cores that this one may use."""

    def __init__(self) -> None:
        self._since = self._now()

    @property
    def is_known(self) -> bool:
        """Whether this system tells it."""
        return self._since[1] is not None

    def free_cores(self) -> float | None:
        """How many are free, on average since the last call that gave a number; None before `LOOK_S` are over."""
        if time.monotonic() - self._since[0] < LOOK_S:
            return None
        (before_s, taken_before_s, own_before_s), now = self._since, self._now()
        self._since = now
        if taken_before_s is None or now[1] is None:
            return None
        others = ((now[1] - taken_before_s) - (now[2] - own_before_s)) / (now[0] - before_s)
        return len(own_cores()) - max(others, 0.0)

    @staticmethod
    def _now() -> tuple[float, float | None, float]:
        """Time, and since the start of each: what all programs took of the cores, what this one took; in seconds."""
        return time.monotonic(), _taken_s(), time.process_time()


def _taken_s() -> float | None:
    """Seconds that the own cores have worked; None where the system does not say, or says nothing of them.

    A row of /proc/stat: core, user, nice, system, idle, iowait, irq, softirq, ...
    """
    try:
        rows = [line.split() for line in STAT.read_text().splitlines() if line.startswith("cpu")]
        ticks = {name: [int(text) for text in values] for name, *values in rows}
        own = [ticks[f"cpu{core}"] for core in own_cores()]
        worked = sum(row[i] for row in own for i in (0, 1, 2, 5, 6))
    except (OSError, ValueError, LookupError):
        return None
    return worked / os.sysconf("SC_CLK_TCK") if all(map(any, own)) else None


class Threads:
    """How many threads PyTorch has in this process."""

    def __init__(self) -> None:
        self._most = self._now = torch.get_num_threads()
        self.may_change = True  # not while there is compiled code, which is for a number of threads
        self._told = False

    def most(self) -> int:
        """The number without other programs: PyTorch's own, or what somebody has set meanwhile."""
        if torch.get_num_threads() != self._now:
            self._most = self._now = torch.get_num_threads()
        return self._most

    def keep(self) -> None:
        """Let the number be that without other programs from now on."""
        self._now, self.may_change = self.most(), False
        torch.set_num_threads(self._now)

    def follow(self, load: Load) -> bool:
        """Change the number to what the load leaves; whether that is possible here."""
        fixed = any(map(os.environ.get, FIXED_BY)) or self._most > MOST_THREADS
        if fixed or not self.may_change or not load.is_known:
            return False
        free = load.free_cores()
        if free is not None:
            number = min(max(int(free + 1 - SPARE_CORE), 1), self._most)
            self.may_change = number == self._most or same_products(self._most, number)
            self._set(number if self.may_change else self._most)
        return self.may_change

    def _set(self, number: int) -> None:
        if number < self._most and not self._told:
            logger.info(f"other programs are busy: {number} of {self._most} threads now; results do not depend on it")
            self._told = True
        self._now = number
        torch.set_num_threads(number)


LOAD = Load()  # from the start of the program on, so that the first loop knows it
THREADS = Threads()


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
