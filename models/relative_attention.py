"""Causal attention with relative terms, over groups of trips padded together, with the gradients written out.

Queries, keys and values come packed by step, and products of many small matrices want them by trip and head. Here each
is copied there once, and its gradient back once; left to autograd, the copies and the matrices [T, T] that come between
two operations take longer than the products, and a training step on 43,800 roads 1.07 times as long on a CPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.batch import AttentionGroup
from models.thread_count import product, softmax_gradient


@dataclass(frozen=True)
class PaddedLayout:
    """Rows of C numbers: head h at place t of a group's trip g has row (g * H + h) * T + t behind those of the groups
    before. The rows past a trip's end are zero."""

    groups: tuple[AttentionGroup, ...]
    num_rows: int  # N
    row: Tensor  # [S * H] int64, row of each head of each step
    qkv_row: Tensor  # [S * 3 * H] int64, row of each head's query, key and value among those of all, [3 * N]


def padded_layout(slot: Tensor, groups: tuple[AttentionGroup, ...], num_heads: int) -> PaddedLayout:
    """The layout of a batch, the same for all layers; `slot` and `groups` are the batch's."""
    first, rows_of_places = 0, []
    for group in groups:
        G, T = group.num_trips, group.max_len
        last = first + G * num_heads * T
        rows = torch.arange(first, last, device=slot.device).view(G, num_heads, T)
        rows_of_places.append(rows.transpose(1, 2).reshape(-1, num_heads))
        first = last
    row = torch.cat(rows_of_places).index_select(0, slot)  # [S, H]
    qkv_row = torch.cat([row, row + first, row + 2 * first], dim=1).view(-1)
    return PaddedLayout(groups, first, row.view(-1), qkv_row)


def relative_attention(qkv: Tensor, w_key: Tensor, w_value: Tensor, layout: PaddedLayout) -> Tensor:
    """out_i = sum_j a_ij (v_j + W_v r_ij), a_i. = softmax over j <= i of q_i . (k_j + W_k r_ij) / sqrt(C).

    Args:
        qkv: [S, 3 * H * C].
        w_key: [C, 2], W_k, for the distance and the time interval r_ij of a pair of steps of a trip.
        w_value: [C, 2], W_v.
        layout: the trips.

    Returns:
        [S, H * C]. Weights are computed in float32, products in the precision of `qkv`.
    """
    with torch.autocast(qkv.device.type, enabled=False):
        return RelativeAttention.apply(qkv, w_key.to(qkv.dtype), w_value.to(qkv.dtype), layout)


class RelativeAttention(Function):
    """`relative_attention`. Products write to `out`: those in place are unknown to PyTorch's counter of operations."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, w_key: Tensor, w_value: Tensor, layout: PaddedLayout) -> Tensor:
        """Values. r_ij has two numbers, so q_i . W_k r_ij = (W_k^T q_i) . r_ij needs no vector for each pair, and
        sum_j a_ij W_v r_ij = W_v (sum_j a_ij r_ij) neither."""
        N, C, scale = layout.num_rows, len(w_key), 1.0 / math.sqrt(len(w_key))
        qkv_rows = qkv.new_zeros(3 * N, C).index_copy_(0, layout.qkv_row, qkv.reshape(-1, C))
        q, k, v = qkv_rows.split(N)
        q_relative = product(q, w_key * scale)
        out, relative, weights = torch.empty_like(q), torch.empty_like(q_relative), []
        for group, part, shape in _parts(layout):
            T, of_distance, of_interval = group.max_len, *_by_trip(q_relative[part], group)
            future = q.new_full((T, T), float("-inf")).triu_(1)
            # Steps past a trip's end stand behind its real steps, so the causal mask keeps them out too.
            score = torch.addcmul(future, of_distance, group.distance.to(q.dtype).unsqueeze(1))
            score = score.addcmul_(of_interval, group.time_interval.to(q.dtype).unsqueeze(1)).view(-1, T, T)
            torch.baddbmm(score, q[part].view(shape), k[part].view(shape).transpose(1, 2), alpha=scale, out=score)
            weight = score.softmax(-1, dtype=_wide(q))
            _sum_relative(weight, group, relative[part])
            weights.append(weight.to(q.dtype))
            torch.bmm(weights[-1], v[part].view(shape), out=out[part].view(shape))
        torch.addmm(out, relative, w_value.T, out=out)
        ctx.save_for_backward(qkv_rows, w_key, w_value, relative, *weights)
        ctx.layout = layout
        return out.index_select(0, layout.row).view(len(qkv), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_steps: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of qkv, W_k and W_v, by the chain rule from d_a_ij = d_out_i . v_j + (W_v^T d_out_i) . r_ij."""
        qkv_rows, w_key, w_value, relative, *weights = ctx.saved_tensors
        layout: PaddedLayout = ctx.layout
        N, C, scale = layout.num_rows, len(w_key), 1.0 / math.sqrt(len(w_key))
        q, k, v = qkv_rows.split(N)
        d_out = q.new_zeros(N, C).index_copy_(0, layout.row, d_steps.reshape(-1, C))
        d_relative, d_q_relative = product(d_out, w_value), torch.empty_like(relative)
        d_qkv_rows = torch.empty_like(qkv_rows)
        d_q, d_k, d_v = d_qkv_rows.split(N)
        for (group, part, shape), weight in zip(_parts(layout), weights, strict=True):
            d_sums = d_out[part].view(shape)
            torch.bmm(weight.transpose(1, 2), d_sums, out=d_v[part].view(shape))
            d_weight = torch.bmm(d_sums, v[part].view(shape).transpose(1, 2))
            of_distance, of_interval = _by_trip(d_relative[part], group)
            by_trip = d_weight.unflatten(0, (group.num_trips, -1))
            by_trip.addcmul_(of_distance, group.distance.to(q.dtype).unsqueeze(1))
            by_trip.addcmul_(of_interval, group.time_interval.to(q.dtype).unsqueeze(1))
            d_score = softmax_gradient(d_weight.to(_wide(q)), weight.to(_wide(q)))
            _sum_relative(d_score, group, d_q_relative[part])
            d_score = d_score.to(q.dtype)
            for d, left, right in ((d_q, d_score, k), (d_k, d_score.transpose(1, 2), q)):
                d = d[part].view(shape)
                torch.baddbmm(d, left, right[part].view(shape), beta=0, alpha=scale, out=d)
        torch.addmm(d_q, d_q_relative, w_key.T * scale, out=d_q)
        d_w_key = (q.T @ d_q_relative).mul_(scale)
        d_qkv = d_qkv_rows.index_select(0, layout.qkv_row).view(len(d_steps), -1)
        return d_qkv, d_w_key, d_out.T @ relative, None


def _wide(x: Tensor) -> torch.dtype:
    """The precision of sums over many steps: float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def _parts(layout: PaddedLayout) -> Iterator[tuple[AttentionGroup, slice, tuple[int, int, int]]]:
    """Of each group: itself, its rows, and their shape [G * H, T, C] as matrices (C is -1)."""
    groups, first = layout.groups, 0
    num_heads = layout.num_rows // sum(group.num_trips * group.max_len for group in groups)
    for group in groups:
        matrices = group.num_trips * num_heads
        last = first + matrices * group.max_len
        yield group, slice(first, last), (matrices, group.max_len, -1)
        first = last


def _by_trip(pairs: Tensor, group: AttentionGroup) -> tuple[Tensor, Tensor]:
    """[G * H * T, 2] -> two of [G, H, T, 1], which multiply the distances and the intervals of the trips."""
    return pairs.view(group.num_trips, -1, group.max_len, 2).split(1, dim=-1)


def _sum_relative(weight: Tensor, group: AttentionGroup, out: Tensor) -> None:
    """sum_j weight_ij r_ij of a group: weight [G * H, T, T], into out [G * H * T, 2]."""
    weight = weight.view(group.num_trips, -1, *weight.shape[1:])
    for values, column in zip((group.distance, group.time_interval), out.T, strict=True):
        column.copy_((weight * values.unsqueeze(1)).sum(-1).view(-1))
