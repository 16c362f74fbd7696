"""Trajectory Encoder (HOSER, section 4.2): a causal transformer with relative distance and time terms.

Positions are packed ([S, C], all steps of all trips); only attention itself is padded, group by group of trips.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.config import TrajectoryEncoderConfig
from models.relative_attention import PaddedLayout, padded_layout, relative_attention
from models.thread_count import LayerNorm


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

    def forward(self, x: Tensor, layout: PaddedLayout) -> Tensor:
        """x: [S, width] -> [S, width]."""
        qkv = F.linear(x, self.c_attn.weight, self.c_attn.bias + self.relative_bias())
        to_key, to_value = self.relative_position_emb_k.weight, self.relative_position_emb_v.weight
        return self.resid_dropout(self.c_proj(relative_attention(qkv, to_key, to_value, layout)))

    def relative_bias(self) -> Tensor:
        """The b of all keys and of all values, [3 * width], zero for the queries: part of the projection's bias."""
        key, value = self.relative_position_emb_k.bias, self.relative_position_emb_v.bias
        return torch.cat([key.new_zeros(len(key) * self.num_heads), *[key] * self.num_heads, *[value] * self.num_heads])


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

    def forward(self, x: Tensor, layout: PaddedLayout) -> Tensor:
        """x: [S, width] -> [S, width]."""
        x = x + self.attn(self.ln_1(x), layout)
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
        blocks = self.transformer["h"]
        layout = padded_layout(batch.slot, batch.groups, blocks[0].attn.num_heads)
        for block in blocks:
            x = block(x, layout)
        return x

    def fuse(self, road_embedding: Tensor, zone_embedding: Tensor) -> Tensor:
        """Embeddings of roads and of their zones -> the spatial half of a step; all [n, hidden_dim]."""
        gate = torch.sigmoid(self.road_zone_fusion_mlp(torch.cat([road_embedding, zone_embedding], dim=-1)))
        return road_embedding + gate * zone_embedding

    def embed(self, spatial: Tensor, temporal_info: Tensor) -> Tensor:
        """Spatial halves [S, hidden_dim] and times of day [S] -> what the first block reads, [S, 2 * hidden_dim]."""
        temporal = self.temporal_encoder(temporal_info)
        return self.transformer["drop"](torch.cat([spatial, temporal.to(spatial.dtype)], dim=-1))
