"""Attention over the edges of a graph, with the gradients written out.

The vectors of all edges are tens of megabytes, and step by step they go through the memory a dozen times. Here each is
computed at once, as a sum of rows of a table, in the forward pass by blocks that stay in the cache of a CPU. None is
kept for the backward pass, which computes all of them again and reads them once for each sum. (With the same sums,
but gradients by autograd, a training step on 43,800 roads takes 1.11 times as long on a CPU.)

To change the formula, change the forward pass of `EdgeAttention`, and its backward pass by the chain rule from d_score
(how the loss changes with an edge's score) to what the score is computed from. The sums rest on two properties: the
derivative of leaky_relu has two values, and z is a sum of rows. The tests compare values and gradients with PyTorch
Geometric's layer, and with the formula in plain operations.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.batch import MessageGraph
from models.ragged import segment_softmax, sparse_rows

NEGATIVE_SLOPE = 0.2
# Of the forward pass. A CPU's block is, with the width of 128, 2 MB, which two cores share; a GPU's bounds its memory.
BLOCK_EDGES = {"cpu": 4096, "cuda": 2**20}
# What computes weighted sums of rows: on a CPU an embedding bag, on a GPU a product with a sparse matrix, which takes
# half the time there (the vectors of the edges, sums of four rows: a third).
BY_BAGS = {"cpu": True, "cuda": False}


def edge_attention(l: Tensor, r: Tensor, w_edge: Tensor, att: Tensor, graph: MessageGraph) -> Tensor:  # noqa: E741
    """out_i = sum_j alpha_ij l_j, alpha = softmax over the edges into i of att . leaky_relu(l_j + r_i + W e_ij).

    Args:
        l: [n_in, h], of the sources.
        r: [n_out, h], of the targets.
        w_edge: [h, D], for the attributes e [M, D] of the edges.
        att: [h].
        graph: the edges.

    Returns:
        [n_out, h], float32: sums over many edges are kept in it, whatever the precision of l and r.
    """
    with torch.autocast(l.device.type, enabled=False):
        return EdgeAttention.apply(l.float(), r.float(), w_edge, att, graph)


class EdgeAttention(Function):
    """`edge_attention`; z_ij = l_j + r_i + W e_ij [M, h]."""

    @staticmethod
    def forward(ctx: Any, l: Tensor, r: Tensor, w_edge: Tensor, att: Tensor, graph: MessageGraph) -> Tensor:  # noqa: E741
        """Values; keeps its inputs, alpha [M], its result and `_summands` for the backward pass."""
        score, member, factor = l.new_empty(len(graph.source)), *_summands(l, r, w_edge, graph)
        table = torch.cat([l, r, w_edge.T])
        for edges in _blocks(graph):
            z = _sums_of_rows(table, member[edges], factor[edges])
            torch.mv(F.leaky_relu_(z, NEGATIVE_SLOPE), att, out=score[edges])
        alpha = segment_softmax(score, graph.target, len(r))
        out = _segment_sums(l, graph.source, alpha, graph.ptr)
        ctx.save_for_backward(l, r, w_edge, att, alpha, out, member, factor)
        ctx.graph = graph
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of l, r, W and att. With d_alpha_ij = d_out_i . l_j,

            d_score_ij = alpha_ij (d_alpha_ij - sum_k alpha_ik d_alpha_ik) = alpha_ij (d_alpha_ij - d_out_i . out_i).

        d_z_ij = d_score_ij leaky_relu'(z_ij) * att, and the derivative is s + (1 - s) [z > 0]. So with
        D_l_j = sum_i d_score_ij leaky_relu'(z_ij), and D_r_i and D_w likewise (times e_ij),

            d_l_j = D_l_j * att + sum_i alpha_ij d_out_i,  d_r_i = D_r_i * att,  d_W = D_w * att,

        and, as leaky_relu(z) = leaky_relu'(z) * z, d_att = sum_j D_l_j * l_j + sum_i D_r_i * r_i + sum D_w * W.
        The d_score of a target's edges add up to zero, which leaves s out of D_r.
        """
        l, r, w_edge, att, alpha, out, member, factor = ctx.saved_tensors  # noqa: E741
        graph: MessageGraph = ctx.graph
        source, target, s = graph.source, graph.target, NEGATIVE_SLOPE
        d_out = d_out.contiguous()
        d_alpha = torch.ops.aten._embedding_bag_per_sample_weights_backward(d_out, l, source, graph.ptr, target, 0)
        d_score = alpha * (d_alpha - (d_out * out).sum(1).index_select(0, target))

        ordered, by_source = torch.sort(source, stable=True)
        source_ptr = torch.searchsorted(ordered, torch.arange(len(l) + 1, device=source.device))
        is_positive = _sums_of_rows(torch.cat([l, r, w_edge.T]), member, factor).gt_(0)
        edge, where_positive = torch.arange(len(source), device=source.device), (1 - s) * d_score
        D_l = _segment_sums(is_positive, by_source, where_positive[by_source], source_ptr)
        D_l += s * d_score.new_zeros(len(l), 1).index_add_(0, source, d_score.unsqueeze(1))
        D_r = _segment_sums(is_positive, edge, where_positive, graph.ptr)
        attributes = graph.edge_attr.T
        if BY_BAGS[d_out.device.type]:
            weights = (where_positive * attribute for attribute in attributes)
            D_w = torch.stack([_segment_sums(is_positive, edge, weight, graph.ptr).sum(0) for weight in weights])
        else:
            D_w = (where_positive * attributes) @ is_positive
        D_w += s * (attributes @ d_score).unsqueeze(1)

        d_att = (l * D_l).sum(0) + (r * D_r).sum(0) + (w_edge.T * D_w).sum(0)
        d_l = _segment_sums(d_out, target[by_source], alpha[by_source], source_ptr).addcmul_(D_l, att)
        return d_l, D_r.mul_(att), (D_w * att).T, d_att, None


def _summands(l: Tensor, r: Tensor, w_edge: Tensor, graph: MessageGraph) -> tuple[Tensor, Tensor]:  # noqa: E741
    """Rows of the table of all l, all r and the columns of W that z of each edge is the sum of, and their factors.

    Both are [M, 2 + D].
    """
    first_r, first_w, num_attributes = len(l), len(l) + len(r), w_edge.shape[1]
    member = torch.empty(len(graph.source), 2 + num_attributes, dtype=torch.int64, device=l.device)
    member[:, 0] = graph.source
    torch.add(graph.target, first_r, out=member[:, 1])
    member[:, 2:] = torch.arange(first_w, first_w + num_attributes, device=l.device)
    factor = torch.ones_like(member, dtype=l.dtype)
    factor[:, 2:] = graph.edge_attr
    return member, factor


def _sums_of_rows(table: Tensor, member: Tensor, factor: Tensor) -> Tensor:
    """The sums of `factor` [m, k] times rows `member` [m, k] of `table` [n, h], [m, h]."""
    ptr = torch.arange(0, member.numel() + 1, member.shape[1], device=table.device)
    return _segment_sums(table, member.view(-1), factor.view(-1), ptr)


def _segment_sums(table: Tensor, row: Tensor, factor: Tensor, ptr: Tensor) -> Tensor:
    """The sums of `factor` [m] times rows `row` [m] of `table` [n, h] within the segments that `ptr` [g + 1] bounds."""
    if BY_BAGS[table.device.type]:
        return F.embedding_bag(row, table, ptr, mode="sum", per_sample_weights=factor, include_last_offset=True)
    return sparse_rows(ptr, row, factor, len(table)) @ table


def _blocks(graph: MessageGraph) -> Iterator[slice]:
    size = BLOCK_EDGES[graph.source.device.type]
    for start in range(0, len(graph.source), size):
        yield slice(start, start + size)
