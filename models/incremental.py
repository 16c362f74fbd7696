"""HOSER on paths that grow by one road at a time, for generating trips.

The Trajectory Encoder is causal, and the relative terms of two steps depend on these two only: what a step gives to
later steps, its key and value in each layer, never changes. So they are kept, and a road more costs one token instead
of the whole path again. Paths that share their first roads share their keys and values.

What depends on a road alone (its embedding with its zone's, its summands in the navigator) is computed once for all
roads, what depends on a destination alone once for all zones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.batch import NextSteps, PathGroup, Prediction
from models.hoser import HOSER
from models.trajectory_encoder import CausalSelfAttention

ROADS_AT_ONCE = 65_536  # of a large network, so that what is in between stays small


class IncrementalHOSER:
    """A trained model, and the keys and values of the roads that it has seen, each in a slot that the caller gives."""

    @torch.no_grad()
    def __init__(self, model: HOSER, network: tuple[Tensor, Tensor]):
        """Take what is needed of a model.

        Args:
            model: in evaluation mode.
            network: what `HOSER.embed_network` returned, in float32.
        """
        road, zone = network
        encoder, navigator = model.trajectory_encoder, model.navigator
        road_parts = zip(road.split(ROADS_AT_ONCE), model.road2zone.split(ROADS_AT_ONCE), strict=True)
        self.spatial = torch.cat([encoder.fuse(part, zone.index_select(0, zones)) for part, zones in road_parts])
        self.road_key = navigator.road_key(road)  # [N, h]
        self.road_time = navigator.road_time(road)  # [N]
        self.destination_query = navigator.destination_query(zone)  # [Z, h]
        self.road2zone, self.navigator, self.encoder = model.road2zone, navigator, encoder
        self.blocks = list(encoder.transformer["h"])
        # Of each block, [slots, heads, C]; relative biases are in them already.
        heads = self.blocks[0].attn.num_heads
        empty = road.new_empty(0, heads, 2 * road.shape[1] // heads)
        self._keys = [empty for _ in self.blocks]
        self._values = [empty for _ in self.blocks]
        self.slot_bytes = 2 * len(self.blocks) * 2 * road.shape[1] * road.element_size()

    @property
    def slots(self) -> int:
        """How many roads' keys and values there is room for."""
        return len(self._keys[0])

    def reserve(self, slots: int) -> None:
        """Make room for more; what is kept stays."""
        for kept in (self._keys, self._values):
            for layer, old in enumerate(kept):
                kept[layer] = old.new_empty(slots, *old.shape[1:])
                kept[layer][: len(old)] = old

    @torch.no_grad()
    def __call__(self, steps: NextSteps) -> Prediction:
        """Scores and standardised log times of the candidates [K]; keys and values of the steps are kept."""
        x = self.encoder.embed(self.spatial.index_select(0, steps.road_id), steps.temporal_info)
        for layer, block in enumerate(self.blocks):
            x = x + self._attention(layer, block.attn, block.ln_1(x), steps)
            x = x + block.mlp(block.ln_2(x))
        destination_zone = self.road2zone.index_select(0, steps.destination_road_id)
        q = self.navigator.query(x) + self.destination_query.index_select(0, destination_zone)
        candidate = steps.candidate_road_id
        logits = self.navigator.scores(q, self.road_key, candidate, steps)
        time_pred = self.navigator.step_time(x).index_select(0, steps.step_of_candidate)
        return Prediction(logits, time_pred + self.road_time.index_select(0, candidate))

    def _attention(self, layer: int, attn: CausalSelfAttention, x: Tensor, steps: NextSteps) -> Tensor:
        """[S, width] -> [S, width]."""
        q, k, v = attn.c_attn(x).view(len(x), 3, attn.num_heads, -1).unbind(1)  # each [S, H, C]
        self._keys[layer].index_copy_(0, steps.slot, k + attn.relative_position_emb_k.bias)
        self._values[layer].index_copy_(0, steps.slot, v + attn.relative_position_emb_v.bias)
        parts = q.split([len(group.slot) for group in steps.groups])
        mixed = [self._attend(layer, attn, part, group) for part, group in zip(parts, steps.groups, strict=True)]
        return attn.c_proj(torch.cat(mixed))

    def _attend(self, layer: int, attn: CausalSelfAttention, q: Tensor, group: PathGroup) -> Tensor:
        """The sums of `CausalSelfAttention` for the last step of each path: q [P, H, C] -> [P, H * C]."""
        (P, H, C), T = q.shape, group.slot.shape[1]
        # Rows of keys and values where heads are rows of their own.
        row = (group.slot.unsqueeze(1) * H + torch.arange(H, device=q.device)[:, None]).view(P * H, T)
        to_key, to_value = attn.relative_position_emb_k.weight, attn.relative_position_emb_v.weight  # [C, 2]
        distance, interval = group.distance.unsqueeze(1), group.time_interval.unsqueeze(1)  # [P, 1, T]

        q = q * (1.0 / math.sqrt(C))
        key = self._keys[layer].view(-1, C).index_select(0, row.view(-1)).view(P * H, T, C)
        score = torch.bmm(key, q.reshape(P * H, C, 1)).view(P, H, T)
        q_relative = q @ to_key  # [P, H, 2]
        score = torch.addcmul(score, q_relative[..., :1], distance)
        score = torch.addcmul(score, q_relative[..., 1:], interval)
        weight = F.softmax(score.masked_fill_(group.is_past_end.unsqueeze(1), float("-inf")), dim=-1)

        relative = torch.stack([(weight * distance).sum(-1), (weight * interval).sum(-1)], dim=-1)  # [P, H, 2]
        out = F.embedding_bag(
            row, self._values[layer].view(-1, C), mode="sum", per_sample_weights=weight.view(P * H, T)
        )
        return (out.view(P, H, C) + relative @ to_value.T).view(P, H * C)
