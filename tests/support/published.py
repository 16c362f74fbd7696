"""The published HOSER in its plain form: initial values, and formulas written out term by term.

Only for comparison. The plain formulas work on one padded batch, [B, T] and [B, T, C], as the paper
writes them, and share nothing with the models but the parameters.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import MessageGraph
from utils.config import Config


def initial_attention_biases(config: Config, seed: int, num_roads: int, num_types: int) -> list[Tensor]:
    """The initial `c_attn.bias` of each layer as the published code draws it from `seed`.

    The golden state dicts lack this parameter: it was left out with the masks, whose names end alike.
    The order of construction below is that of the published code, so the draws are the same.
    """
    from torch_geometric.nn.models import GAT, GCN

    torch.manual_seed(seed)
    encoder, h = config.road_network_encoder_config, config.trajectory_encoder_config.hidden_dim
    nn.Embedding(num_roads, encoder.road_id_emb_dim)
    nn.Linear(1, encoder.len_emb_dim)
    nn.Embedding(num_types, encoder.type_emb_dim)
    nn.Linear(1, encoder.lon_emb_dim)
    nn.Linear(1, encoder.lat_emb_dim)
    nn.Embedding(encoder.zone_id_num_embeddings, encoder.zone_id_emb_dim)
    GAT(h, h, num_layers=2, out_channels=h, edge_dim=2, v2=True)
    GCN(h, h, num_layers=2, out_channels=h, cached=True)
    nn.Linear(2 * h, 64), nn.Linear(64, 1)
    torch.randn(h // 2)
    biases = []
    width, heads = 2 * h, config.trajectory_encoder_config.num_heads
    for _ in range(config.trajectory_encoder_config.num_layers):
        nn.Linear(2, width // heads), nn.Linear(2, width // heads)
        biases.append(nn.Linear(width, 3 * width).bias.detach())
        nn.Linear(width, width)
        nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    return biases


def plain_edge_attention(l: Tensor, r: Tensor, w_edge: Tensor, att: Tensor, graph: MessageGraph) -> Tensor:  # noqa: E741
    """GATv2's attention with a vector for each edge. l: [n_in, h], r: [n_out, h], float32 from there on."""
    message = l.float()[graph.source]
    score = F.leaky_relu(message + r.float()[graph.target] + graph.edge_attr @ w_edge.T, 0.2) @ att
    alpha = torch.cat([part.softmax(0) for part in score.split(torch.bincount(graph.target).tolist())])
    return torch.zeros(r.shape).index_add(0, graph.target, message * alpha.unsqueeze(1))


def plain_attention(attn: nn.Module, x: Tensor, distance: Tensor, interval: Tensor) -> Tensor:
    """Attention with the [B, T, T, channels] tensors of relative vectors. x: [B, T, width]."""
    B, T, width = x.shape
    q, k, v = (part.view(B, T, attn.num_heads, -1).transpose(1, 2) for part in attn.c_attn(x).split(width, dim=2))
    pairs = torch.stack([distance, interval], dim=-1)  # [B, T, T, 2]
    relative_k, relative_v = attn.relative_position_emb_k(pairs), attn.relative_position_emb_v(pairs)
    score = q @ k.transpose(-2, -1) + torch.einsum("bhic,bijc->bhij", q, relative_k)
    score = score / math.sqrt(q.shape[-1])
    score = score.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf"))
    weight = score.softmax(dim=-1)
    out = weight @ v + torch.einsum("bhij,bijc->bhic", weight, relative_v)
    return attn.c_proj(out.transpose(1, 2).reshape(B, T, width))


def plain_navigator(
    navigator: nn.Module, trajectory: Tensor, destination: Tensor, candidate: Tensor, distance: Tensor, angle: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores and times [S, C] from concatenations. trajectory [S, 2h], destination [S, h], candidate [S, C, h]."""
    q = navigator.q_proj(torch.cat([trajectory, destination], dim=-1)).unsqueeze(1)
    parts = [
        candidate,
        navigator.metric_distance_proj(distance.unsqueeze(-1)),
        navigator.metric_angle_proj(angle.unsqueeze(-1)),
    ]
    logits = navigator.v_proj(torch.tanh(q + navigator.k_proj(torch.cat(parts, dim=-1)))).squeeze(-1)
    of_step = navigator.time_estimator_linear_1(trajectory).unsqueeze(1).expand(-1, candidate.shape[1], -1)
    hidden = torch.cat([of_step, navigator.time_estimator_linear_2(candidate)], dim=-1)
    return logits, navigator.time_estimator_linear_3(F.gelu(hidden)).squeeze(-1)
