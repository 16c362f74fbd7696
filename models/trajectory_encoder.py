"""Trajectory Encoder (HOSER, section 4.2): a causal transformer with relative distance and time terms.

Positions are packed ([S, C], all steps of all trips); only attention itself is padded, group by group of
trips of similar length.
"""

import math

import torch
from torch import Tensor, nn

from models.batch import AttentionGroup, Batch
from models.config import TrajectoryEncoderConfig
from models.thread_count import LayerNorm, product, softmax


class CausalSelfAttention(nn.Module):
    """Self-attention where the distance d_ij and the time interval t_ij enter keys and values.

    The published form adds r_ij = w_d d_ij + w_t t_ij + b (its `relative_position_emb_k` and `_v`, one
    vector for each pair of steps, shared by the heads) to key j and to value j. The same function without
    a [T, T, channels] tensor:

        q_i . (k_j + r_ij) = q_i . (k_j + b) + (q_i . w_d) d_ij + (q_i . w_t) t_ij
        sum_j a_ij (v_j + r_ij) = sum_j a_ij (v_j + b) + (sum_j a_ij d_ij) w_d + (sum_j a_ij t_ij) w_t
    """

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_emb_k = nn.Linear(2, width // num_heads)
        self.relative_position_emb_v = nn.Linear(2, width // num_heads)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, groups: tuple[AttentionGroup, ...]) -> Tensor:
        """x: [S, width] -> [S, width]."""
        # split, not slices: each slice's gradient would be as large as the whole.
        parts = self.c_attn(x).split([group.num_steps for group in groups])
        mixed = [self.attend(part, group) for part, group in zip(parts, groups, strict=True)]
        return self.resid_dropout(self.c_proj(torch.cat(mixed)))

    def attend(self, qkv: Tensor, group: AttentionGroup) -> Tensor:
        """qkv: [steps of the group, 3 * width] -> [steps of the group, width]."""
        G, T, H = group.num_trips, group.max_len, self.num_heads
        padded = qkv.new_zeros(G * T, qkv.shape[1]).index_copy(0, group.slot, qkv)
        q, k, v = padded.view(G, T, 3, H, -1).permute(2, 0, 3, 1, 4)  # each [G, H, T, C]
        distance, interval = group.distance.to(q.dtype), group.time_interval.to(q.dtype)
        distance, interval = distance.unsqueeze(1), interval.unsqueeze(1)  # [G, 1, T, T]

        to_key, to_value = self.relative_position_emb_k, self.relative_position_emb_v
        q = q * (1.0 / math.sqrt(q.shape[-1]))
        q_relative = product(q, to_key.weight.to(q.dtype))  # [G, H, T, 2]
        score = q @ (k + to_key.bias.to(q.dtype)).transpose(-2, -1)
        score = torch.addcmul(score, q_relative[..., :1], distance)
        score = torch.addcmul(score, q_relative[..., 1:], interval)
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        # Steps past a trip's end stand behind its real steps, so the causal mask keeps them out too.
        weight = softmax(score.masked_fill(future, float("-inf")))

        relative = torch.stack([(weight * distance).sum(-1), (weight * interval).sum(-1)], dim=-1)
        weight = weight.to(v.dtype)
        out = weight @ (v + to_value.bias.to(v.dtype))
        out = out + product(relative.to(v.dtype), to_value.weight.to(v.dtype).T)  # [G, H, T, C]
        return out.transpose(1, 2).reshape(G * T, -1).index_select(0, group.slot)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = CausalSelfAttention(width, num_heads, dropout)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, groups: tuple[AttentionGroup, ...]) -> Tensor:
        """x: [S, width] -> [S, width]."""
        x = x + self.attn(self.ln_1(x), groups)
        return x + self.mlp(self.ln_2(x))


class TemporalEncoder(nn.Module):
    """Fourier features of the time of day with learned frequencies."""

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.freqs = nn.Parameter(torch.randn(hidden_dim // 2))

    def forward(self, temporal_info: Tensor) -> Tensor:
        """temporal_info: [S] -> [S, hidden_dim]."""
        phase = temporal_info.unsqueeze(-1) * self.freqs
        scale = math.sqrt(1.0 / (4 * len(self.freqs)))
        return torch.cat([phase.cos(), phase.sin()], dim=-1) * scale


class TrajectoryEncoder(nn.Module):
    """From the roads travelled so far, their zones and times, to one vector for each step."""

    def __init__(self, config: TrajectoryEncoderConfig):
        super().__init__()
        width = 2 * config.hidden_dim
        self.road_zone_fusion_mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 1))
        self.temporal_encoder = TemporalEncoder(config.hidden_dim)
        blocks = [Block(width, config.num_heads, config.dropout) for _ in range(config.num_layers)]
        self.transformer = nn.ModuleDict({"drop": nn.Dropout(config.dropout), "h": nn.ModuleList(blocks)})

    def forward(self, road_embedding: Tensor, zone_embedding: Tensor, batch: Batch) -> Tensor:
        """Embeddings of the roads and zones of the steps, [S, hidden_dim] each -> [S, 2 * hidden_dim]."""
        x = self.embed(self.fuse(road_embedding, zone_embedding), batch.temporal_info)
        for block in self.transformer["h"]:
            x = block(x, batch.groups)
        return x

    def fuse(self, road_embedding: Tensor, zone_embedding: Tensor) -> Tensor:
        """Embeddings of roads and of their zones -> the spatial half of a step; all [n, hidden_dim]."""
        gate = torch.sigmoid(self.road_zone_fusion_mlp(torch.cat([road_embedding, zone_embedding], dim=-1)))
        return road_embedding + gate * zone_embedding

    def embed(self, spatial: Tensor, temporal_info: Tensor) -> Tensor:
        """Spatial halves [S, hidden_dim] and times of day [S] -> what the first block reads, [S, 2 * hidden_dim]."""
        temporal = self.temporal_encoder(temporal_info)
        return self.transformer["drop"](torch.cat([spatial, temporal.to(spatial.dtype)], dim=-1))
