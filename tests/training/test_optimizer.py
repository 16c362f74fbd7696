"""Our AdamW is the library's, without what its methods import."""

import copy

import pytest
import torch
from torch import Tensor, nn

from utils.training.optimizer import AdamW


def train(kind: type[torch.optim.AdamW]) -> list[Tensor]:
    """Weights and state after five steps with different rates, with a save and a load between."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 1))
    x = torch.randn(8, 5)
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = optimizer.state_dict()["state"].values()
    return [*model.parameters(), *(value for values in state for value in values.values())]


@pytest.mark.slow
def test_its_steps_and_its_state_are_the_librarys_to_the_bit() -> None:
    ours, librarys = train(AdamW), train(torch.optim.AdamW)
    assert len(ours) == len(librarys) == 4 + 4 * 3
    assert all(torch.equal(a, b) for a, b in zip(ours, librarys, strict=True))
    assert all(weight.requires_grad for weight in ours[:4])
