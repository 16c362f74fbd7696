"""Whether results depend on the number of threads: each operation is computed with several, and compared bit by bit."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NUMBERS = (1, 2, 3, 5)
RANDOM = ("rand", "bernoulli", "dropout", "normal", "uniform", "empty")  # other numbers each time


class EveryNumberOfThreads(TorchDispatchMode):
    """Within it, `differing` gets the operations that another number of threads gives other bits.

    Those that the program computes with one thread on purpose are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.differing: list[str] = []
        self.compared = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        threads = torch.get_num_threads()
        if threads > 1 and not any(part in str(operation) for part in RANDOM):
            results = []
            for number in NUMBERS:
                torch.set_num_threads(number)
                own_args, own_kwargs = tree_map(_copy, (args, kwargs))
                result = operation(*own_args, **own_kwargs)
                # What an operation writes to is among its arguments.
                results.append([x for x in tree_flatten((result, own_args, own_kwargs))[0] if isinstance(x, Tensor)])
            torch.set_num_threads(threads)
            self.compared += 1
            if not all(_equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)):
                shapes = [tuple(x.shape) for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
                self.differing.append(f"{operation} {shapes}")
        return operation(*args, **kwargs)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.layout is torch.sparse_csr:
        a, b = a.values(), b.values()
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
