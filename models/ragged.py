"""Index arithmetic on ragged arrays: values of many groups packed one after the other."""

import torch
from torch import Tensor


def ragged_arange(length: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """Group and place of each element: lengths [2, 3] give groups [0, 0, 1, 1, 1], places [0, 1, 0, 1, 2].

    Args:
        length: [G] int64, elements of each group.
        total: their sum, where it is known on the host (a GPU need not be waited for then).
    """
    group = torch.arange(len(length), device=length.device).repeat_interleave(length, output_size=total)
    first = length.cumsum(0) - length
    return group, torch.arange(len(group), device=length.device) - first[group]


def distinct(ids: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The distinct values of `ids` (all below `limit`), ascending, and a table [limit] from id to row.

    Entries of the table for other ids are undefined.
    """
    present = torch.zeros(limit, dtype=torch.bool, device=ids.device)
    present[ids] = True
    values = present.nonzero().squeeze(1)
    row = torch.empty(limit, dtype=torch.int64, device=ids.device)
    row[values] = torch.arange(len(values), device=ids.device)
    return values, row


def segment_softmax(score: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Softmax of score [M] within each segment [M]; each segment id is below `num_segments`."""
    highest = score.new_full((num_segments,), float("-inf"))
    highest = highest.scatter_reduce(0, segment, score.detach(), "amax")
    exp = (score - highest.index_select(0, segment)).exp()
    total = exp.new_zeros(num_segments).index_add(0, segment, exp)
    return exp / total.index_select(0, segment)
