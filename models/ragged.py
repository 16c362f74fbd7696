"""Index arithmetic on ragged arrays: values of many groups packed one after the other."""

import warnings

import torch
from torch import Tensor

# Of `sparse_rows`; the second by PyTorch up to 2.12, although the check is declined.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")


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


def sparse_rows(ptr: Tensor, column: Tensor, value: Tensor, width: int) -> Tensor:
    """A sparse matrix [n, width]: in row i, `value` [m] at `column` [m] from `ptr[i]` to `ptr[i + 1]`; ptr: [n + 1]."""
    return torch.sparse_csr_tensor(ptr, column, value, (len(ptr) - 1, width), check_invariants=False)


def segment_softmax(score: Tensor, segment: Tensor, num_segments: int) -> Tensor:
    """Softmax of score [M] within each segment [M]; each segment id is below `num_segments`."""
    highest = score.new_full((num_segments,), float("-inf"))
    highest = highest.scatter_reduce(0, segment, score.detach(), "amax")
    exp = (score - highest.index_select(0, segment)).exp()
    total = exp.new_zeros(num_segments).index_add(0, segment, exp)
    return exp / total.index_select(0, segment)
