"""HOSER on paths that grow by one road at a time, for generating trips.

The Trajectory Encoder is causal, and the relative terms of two steps depend on these two only: what a step gives to
later steps, its key and value in each layer, never changes. So they are kept, and a road more costs one token instead
of the whole path again. Paths that share their first roads share their keys and values.

What depends on a road alone (its embedding with its zone's, its summands in the navigator) is computed once for all
roads, what depends on a destination alone once for all zones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import NextSteps, PathGroup, Prediction
from models.hoser import HOSER
from models.ragged import sparse_rows
from models.trajectory_encoder import Block, CausalSelfAttention

ROADS_AT_ONCE = 65_536  # of a large network, so that what is in between stays small
PAST_END = -1e30  # added to a score: its weight is 0
LINE = 16  # float32 numbers in a line of a processor's cache


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
        self.blocks = [_Block.from_block(block) for block in encoder.transformer["h"]]
        # Of each block, [slots, heads, C].
        heads = self.blocks[0].num_heads
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
        groups = [_Paths.from_group(group, self.blocks[0].num_heads) for group in steps.groups]
        for block, keys, values in zip(self.blocks, self._keys, self._values, strict=True):
            q, k, v, q_relative = block.project(x)
            keys.flatten(1).index_copy_(0, steps.slot, k)  # (flat: by heads it takes up to three times as long)
            values.flatten(1).index_copy_(0, steps.slot, v)
            x = block.finish(x, *_attend(q, q_relative, keys, values, groups))
        destination_zone = self.road2zone.index_select(0, steps.destination_road_id)
        q = self.navigator.query(x) + self.destination_query.index_select(0, destination_zone)
        candidate = steps.candidate_road_id
        logits = self.navigator.scores(q, self.road_key, candidate, steps)
        time_pred = self.navigator.step_time(x).index_select(0, steps.step_of_candidate)
        return Prediction(logits, time_pred + self.road_time.index_select(0, candidate))


@dataclass(frozen=True)
class _Paths:
    """A group of paths, as the attention of every layer reads it."""

    row: Tensor  # [P * H, T] int32, rows of keys and values where heads are rows of their own
    relation: Tensor  # [P, 3, T], what an older road's score has of the newest: d, t, and `PAST_END` past a path's end

    @staticmethod
    def from_group(group: PathGroup, heads: int) -> _Paths:
        P, T = group.slot.shape
        head = torch.arange(heads, dtype=group.slot.dtype, device=group.slot.device)
        row = torch.add(head[:, None], group.slot.unsqueeze(1), alpha=heads).view(P * heads, T)
        past_end = group.is_past_end * PAST_END
        return _Paths(row, torch.stack([group.distance, group.time_interval, past_end], dim=1))


def _attend(q: Tensor, q_relative: Tensor, keys: Tensor, values: Tensor, groups: list[_Paths]) -> tuple[Tensor, Tensor]:
    """The sums of `CausalSelfAttention` for the last step of each path.

    Args:
        q: [S, H, C], divided by sqrt(C).
        q_relative: [S, H, 3], each query's products with w_d and w_t, and 1.
        keys: [slots, H, C].
        values: [slots, H, C].
        groups: the paths, in order.

    Returns:
        sum_j a_ij v_j, [S, H * C]; and sum_j a_ij (d_ij, t_ij), [S, H * 2].
    """
    _, H, C = q.shape
    keys, values = keys.view(-1, C), values.view(-1, C)
    mixed, relative = [], []
    size = [len(paths.relation) for paths in groups]
    for paths, q_part, r_part in zip(groups, q.split(size), q_relative.split(size), strict=True):
        P, _, T = paths.relation.shape
        added = torch.bmm(r_part, paths.relation).view(P * H, T)
        weight = F.softmax(_scores(q_part.reshape(P * H, C), keys, paths.row, added), dim=-1).view(P, H, T)
        relative.append(torch.bmm(weight, paths.relation[:, :2].transpose(1, 2)).view(P, 2 * H))
        weights = weight.view(P * H, T)
        mixed.append(F.embedding_bag(paths.row, values, mode="sum", per_sample_weights=weights).view(P, H * C))
    return (mixed[0], relative[0]) if len(groups) == 1 else (torch.cat(mixed), torch.cat(relative))


def _scores(q: Tensor, keys: Tensor, row: Tensor, added: Tensor) -> Tensor:
    """q_i . keys[row_ij] + added_ij, [n, T].

    Args:
        q: [n, C].
        keys: [rows, C].
        row: [n, T].
        added: [n, T].
    """
    n, T = row.shape
    if q.device.type == "cpu" and torch.backends.mkl.is_available():
        # A product at the places of a sparse matrix reads each row of keys where it is, instead of copying it first:
        # with long paths (61 roads), the model's part of a search takes a sixth less time.
        begin = torch.arange(0, (n + 1) * T, T, dtype=row.dtype)
        added = sparse_rows(begin, row.view(-1), added.view(-1), len(keys))
        return torch.sparse.sampled_addmm(added, q, keys.T).values().view(n, T)
    key = keys.index_select(0, row.view(-1)).view(n, T, -1)
    # (Keys times query, instead of query times keys, takes five times as long.)
    return torch.baddbmm(added.unsqueeze(1), q.unsqueeze(1), key.transpose(1, 2)).squeeze(1)


@dataclass(frozen=True)
class _Affine:
    """x -> x W + b with W as [in, out], which a product of few rows is fastest with."""

    weight: Tensor  # [in, out], padded with zeros to a whole line of the cache
    bias: Tensor
    outputs: int

    @staticmethod
    def from_rows(weight: Tensor, bias: Tensor) -> _Affine:
        """Of a weight [out, in].

        A line more lies between the rows: a power of two apart, as with the published sizes, those of a block of
        columns would all have their places in the same part of the cache, and evict each other, which costs a fifth of
        the time of a product of few rows.
        """
        outputs, inputs = weight.shape
        columns = -(-outputs // LINE) * LINE
        apart = weight.new_zeros(inputs, columns + LINE)
        apart[:, :outputs] = weight.T
        return _Affine(apart[:, :columns], F.pad(bias, (0, columns - outputs)), outputs)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)[:, : self.outputs]


@dataclass(frozen=True)
class _Block:
    """A block of the transformer, with the relative terms multiplied into the projections before and after."""

    num_heads: int
    ln_1: nn.LayerNorm
    ln_2: nn.LayerNorm
    before: _Affine  # to q / sqrt(C), k + b, v + b, (q . w_d, q . w_t, 1) / sqrt(C)
    after: _Affine
    after_relative: Tensor  # [2 * H, width]
    up: _Affine
    down: _Affine

    @staticmethod
    def from_block(block: Block) -> _Block:
        attn: CausalSelfAttention = block.attn
        H, width = attn.num_heads, attn.c_proj.weight.shape[0]
        C = width // H
        to_key, to_value = attn.relative_position_emb_k, attn.relative_position_emb_v
        # [3, H, C, width], and the bias as one column more.
        q, k, v = torch.cat([attn.c_attn.weight, attn.c_attn.bias[:, None]], dim=1).view(3, H, C, width + 1)
        k, v = k.clone(), v.clone()
        k[..., -1] += to_key.bias
        v[..., -1] += to_value.bias
        q = q / math.sqrt(C)
        one = q.new_zeros(H, 1, width + 1)
        one[..., -1] = 1.0
        q_relative = torch.cat([to_key.weight.T @ q, one], dim=1)  # [H, 3, width + 1]
        before = torch.cat([part.reshape(-1, width + 1) for part in (q, k, v, q_relative)])
        after = attn.c_proj.weight.view(width, H, C) @ to_value.weight  # [width, H, 2]
        return _Block(
            num_heads=H,
            ln_1=block.ln_1,
            ln_2=block.ln_2,
            before=_Affine.from_rows(before[:, :-1], before[:, -1]),
            after=_Affine.from_rows(attn.c_proj.weight, attn.c_proj.bias),
            after_relative=after.reshape(width, 2 * H).T.contiguous(),
            up=_Affine.from_rows(block.mlp[0].weight, block.mlp[0].bias),
            down=_Affine.from_rows(block.mlp[2].weight, block.mlp[2].bias),
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[S, width] -> queries [S, H, C], keys and values [S, width], queries of the relative terms [S, H, 3]."""
        width, H = x.shape[1], self.num_heads
        q, k, v, q_relative = self.before(self.ln_1(x)).split([width, width, width, 3 * H], dim=1)
        return q.unflatten(1, (H, -1)), k, v, q_relative.unflatten(1, (H, 3))

    def finish(self, x: Tensor, mixed: Tensor, relative: Tensor) -> Tensor:
        """What the block makes of its input [S, width] and the sums of the attention."""
        x = self.after(mixed).add_(x).addmm_(relative, self.after_relative)
        return self.down(F.gelu(self.up(self.ln_2(x)))).add_(x)
