"""GATv2 and GCN layers in plain torch, equal to PyTorch Geometric's with the options HOSER uses.

Parameter names are PyTorch Geometric's, so that its state dicts load.
"""

import math

import torch
from torch import Tensor, nn

from models.batch import MessageGraph
from models.edge_attention import edge_attention


def _glorot(*shape: int) -> nn.Parameter:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)), the initial values of graph layers (Glorot & Bengio 2010)."""
    bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class GlorotLinear(nn.Linear):
    """A linear layer with the initial values of graph layers, and a bias of zeros."""

    def reset_parameters(self) -> None:
        """Draw the initial values, instead of those of `nn.Linear`."""
        self.weight = _glorot(*self.weight.shape)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class GATv2Conv(nn.Module):
    """GATv2 (Brody et al. 2022) with one head and edge attributes.

    out_i = bias + sum_j alpha_ij lin_l(x_j), alpha = softmax over the edges into i of
    att . leaky_relu(lin_l(x_j) + lin_r(x_i) + lin_edge(edge_attr_ij)).
    """

    def __init__(self, in_dim: int, out_dim: int, edge_dim: int):
        super().__init__()
        self.lin_l = GlorotLinear(in_dim, out_dim, bias=True)
        self.lin_r = GlorotLinear(in_dim, out_dim, bias=True)
        self.att = _glorot(1, 1, out_dim)
        self.lin_edge = GlorotLinear(edge_dim, out_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Tensor, *graphs: MessageGraph) -> Tensor:
        """x: [n_in, in_dim] -> [n_out, out_dim], the targets of all graphs, which must hold the self-loops."""
        l = self.lin_l(x)  # noqa: E741
        parts = []
        for graph in graphs:
            r = self.lin_r(x.index_select(0, graph.self_row))
            parts.append(edge_attention(l, r, self.lin_edge.weight, self.att.view(-1), graph))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)) + self.bias


def with_self_loops(edge_index: Tensor, edge_attr: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Replace self-loops by one per node, whose attributes are the mean of those of its incoming edges.

    Args:
        edge_index: [2, E] int64, (source, target).
        edge_attr: [E, D].

    Returns:
        edges [2, E'] and attributes [E', D], sorted by target (stable), loops last within a target.
    """
    keep = edge_index[0] != edge_index[1]
    (source, target), edge_attr = edge_index[:, keep], edge_attr[keep]
    degree = torch.bincount(target, minlength=num_nodes).clamp(min=1)
    mean = edge_attr.new_zeros(num_nodes, edge_attr.shape[1]).index_add(0, target, edge_attr)
    mean = mean / degree.unsqueeze(1).to(mean.dtype)
    node = torch.arange(num_nodes, device=target.device)
    edges = torch.stack([torch.cat([source, node]), torch.cat([target, node])])
    order = torch.argsort(edges[1], stable=True)
    return edges[:, order], torch.cat([edge_attr, mean])[order]


class GCNConv(nn.Module):
    """Graph convolution (Kipf & Welling 2017) over a dense normalised adjacency matrix.

    Zones are few (hundreds) and their transitions many, so that a dense matrix is the fast form.
    """

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.lin = GlorotLinear(in_dim, out_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """x: [Z, in_dim], adjacency: [Z, Z] from `gcn_adjacency` -> [Z, out_dim]."""
        x = self.lin(x)
        return adjacency.to(x.dtype) @ x + self.bias


def gcn_adjacency(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    """D^-1/2 A^T D^-1/2 as a dense [Z, Z] matrix, row = target; loops of weight 1 where a node has none.

    Args:
        edge_index: [2, E] int64, (source, target); repeated edges add up.
        edge_weight: [E].
    """
    source, target = edge_index
    is_loop = source == target
    matrix = edge_weight.new_zeros(num_nodes, num_nodes)
    matrix.index_put_((target[~is_loop], source[~is_loop]), edge_weight[~is_loop], accumulate=True)
    loop = edge_weight.new_ones(num_nodes)
    loop[source[is_loop]] = edge_weight[is_loop]
    matrix.diagonal().copy_(loop)
    scale = matrix.sum(dim=1).pow(-0.5)
    scale = scale.masked_fill(torch.isinf(scale), 0.0)
    return matrix * scale.unsqueeze(1) * scale.unsqueeze(0)
