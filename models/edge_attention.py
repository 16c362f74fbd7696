"""Attention over the edges of a graph, a block of edges at a time, with the gradients written out.

A vector for each edge is tens of megabytes, and step by step all of it goes through the memory a dozen times. On a CPU
a block of edges that is processed from start to end before the next one stays in the cache; on a GPU nearly always all
edges are one block. Nothing of a block is kept for the backward pass, which computes it again. (Autograd over all edges
at once, with `F.embedding_bag` for the sum, makes a training step on 43,800 roads 1.4 times as long on a CPU.)

To change the formula, change the forward pass of `EdgeAttention`, and its backward pass by the chain rule from d_score
(how the loss changes with an edge's score) to what the score is computed from. The tests compare values and gradients
with PyTorch Geometric's layer, and with the formula in plain operations.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.batch import MessageGraph
from models.ragged import segment_softmax
from models.thread_count import threads_for

NEGATIVE_SLOPE = 0.2
# A CPU's block is, with the width of 128, 2 MB, which two cores share; a GPU's bounds its memory.
BLOCK_EDGES = {"cpu": 4096, "cuda": 2**21}


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
    """`edge_attention` block by block."""

    @staticmethod
    def forward(ctx: Any, l: Tensor, r: Tensor, w_edge: Tensor, att: Tensor, graph: MessageGraph) -> Tensor:  # noqa: E741
        """Values; keeps its inputs, alpha [M] and its result for the backward pass."""
        score = l.new_empty(len(graph.source))
        for edges in _blocks(graph):
            source, target, attr = graph.source[edges], graph.target[edges], graph.edge_attr[edges]
            hidden = _hidden(l.index_select(0, source), r.index_select(0, target), attr, w_edge)
            torch.mv(F.leaky_relu_(hidden, NEGATIVE_SLOPE), att, out=score[edges])
        alpha = segment_softmax(score, graph.target, len(r))
        out = F.embedding_bag(
            graph.source, l, graph.ptr, mode="sum", per_sample_weights=alpha, include_last_offset=True
        )
        ctx.save_for_backward(l, r, w_edge, att, alpha, out)
        ctx.graph = graph
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of l, r, W and att. With d_alpha_ij = d_out_i . l_j,
        d_score_ij = alpha_ij (d_alpha_ij - sum_k alpha_ik d_alpha_ik) = alpha_ij (d_alpha_ij - d_out_i . out_i).
        """
        l, r, w_edge, att, alpha, out = ctx.saved_tensors  # noqa: E741
        graph: MessageGraph = ctx.graph
        d_out = d_out.contiguous()
        mean_d_alpha = (d_out * out).sum(1)
        d_l, d_r, d_w, d_att = (torch.zeros_like(value) for value in (l, r, w_edge.T, att))
        for edges in _blocks(graph):
            source, target, attr = graph.source[edges], graph.target[edges], graph.edge_attr[edges]
            l_j, d_out_i, a = l.index_select(0, source), d_out.index_select(0, target), alpha[edges]
            d_score = (l_j * d_out_i).sum(1).sub_(mean_d_alpha.index_select(0, target)).mul_(a)
            hidden = F.leaky_relu_(_hidden(l_j, r.index_select(0, target), attr, w_edge), NEGATIVE_SLOPE)
            d_att.addmv_(hidden.T, d_score)
            # Of the result of leaky_relu the sign tells as much as of its argument.
            d_hidden = torch.ops.aten.leaky_relu_backward(torch.outer(d_score, att), hidden, NEGATIVE_SLOPE, True)
            for column, d_column in zip(attr.T, d_w, strict=True):
                d_column.addmv_(d_hidden.T, column)
            d_r.index_add_(0, target, d_hidden)
            d_l.index_add_(0, source, d_hidden.add_(d_out_i.mul_(a.unsqueeze(1))))
        return d_l, d_r, d_w.T, d_att, None


def _hidden(l_j: Tensor, r_i: Tensor, attr: Tensor, w_edge: Tensor) -> Tensor:
    """l_j + r_i + W e_ij of the edges of a block, in place of l_j."""
    with threads_for(len(attr)):  # the last block may be short
        return l_j.add_(r_i).addmm_(attr, w_edge.T)


def _blocks(graph: MessageGraph) -> Iterator[slice]:
    size = BLOCK_EDGES[graph.source.device.type]
    for start in range(0, len(graph.source), size):
        yield slice(start, start + size)
