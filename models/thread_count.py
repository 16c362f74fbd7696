"""What keeps results on a CPU independent of the number of threads, to the last bit.

PyTorch computes nearly all that this project uses in an order that does not depend on how many threads share the work.
The exceptions that were found (x86-64, MKL, up to 32 threads), each of which is small and computed by one thread here:

- the gradient of layer norm: each thread adds up the rows that it has;
- the gradient of softmax: a single thread treats the remainder of a row in another way;
- products with few rows (below 52), which the threads share in another way;
- sums of 32,768 float32 numbers or more to a single one: each thread adds up its part.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

FEW_ROWS = 64
MANY_ROWS = 32_768


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension; on a CPU its gradients are computed by one thread."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., C] -> the same shape."""
        if not _by_one_thread(x):
            return super().forward(x)
        return _LayerNorm.apply(x, self.weight, self.bias, self.eps)


def softmax(x: Tensor) -> Tensor:
    """`F.softmax` over the last dimension of x [..., C]; on a CPU its gradient is computed by one thread."""
    return _Softmax.apply(x) if _by_one_thread(x) else F.softmax(x, dim=-1)


def softmax_gradient(d_out: Tensor, out: Tensor) -> Tensor:
    """The gradient of x from that of out = softmax(x) [..., C]; on a CPU computed by one thread."""
    with one_thread() if out.device.type == "cpu" else nullcontext():
        return torch.ops.aten._softmax_backward_data(d_out, out, -1, out.dtype)


def _by_one_thread(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, this thread of the program computes without the help of others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def threads_for(rows: int) -> AbstractContextManager[None]:
    """One thread for products with few rows, all of them for others."""
    return one_thread() if rows < FEW_ROWS else nullcontext()


def enough_rows(x: Tensor) -> Tensor:
    """x [n, C], with rows of zeros below it if n is less than FEW_ROWS. Compiled code is to have one shape, x."""
    if torch.compiler.is_compiling() or len(x) >= FEW_ROWS:
        return x
    return F.pad(x, (0, 0, 0, FEW_ROWS - len(x)))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n] @ weight [n, m] -> [..., m], also where x has few rows."""
    rows = x.reshape(-1, x.shape[-1])
    return (enough_rows(rows) @ weight)[: len(rows)].view(*x.shape[:-1], -1)


def linear_to_one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear` for x [n, C], weight [1, C], bias [1]; the gradient of the bias is a sum over all rows."""
    if len(x) < MANY_ROWS or not _by_one_thread(x):
        return F.linear(x, weight, bias)
    return _AddScalar.apply(F.linear(x, weight), bias)


class _AddScalar(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b: Tensor) -> Tensor:
        ctx.dtype = b.dtype
        return x + b.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
        with one_thread():
            return d_out, d_out.sum(0, dtype=torch.float32).to(ctx.dtype)


class _LayerNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        out, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        with one_thread():  # in float32: in bfloat16, PyTorch would add up thousands of rows in it
            d_x, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
                d_out.float().contiguous(), x.float().contiguous(), weight.shape, mean, rstd, weight, bias, wanted
            )
        return d_x.to(x.dtype), d_weight, d_bias, None


class _Softmax(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = F.softmax(x, dim=-1)
        ctx.save_for_backward(out)
        ctx.dtype = x.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return softmax_gradient(d_out.to(out.dtype), out).to(ctx.dtype)
