"""`training.compile`: the parts of the model that torch.compile can fuse, or a warning and the model as it is."""

import torch
from loguru import logger
from torch import nn

from models.hoser import HOSER
from utils.loader import BatchLoader
from utils.objective import Objective


def compile_model(model: HOSER, loader: BatchLoader, objective: Objective) -> None:
    """Compile `model` in place, and try it on a batch: what fails then would fail in the first step.

    State dicts stay as they are. Shapes vary from batch to batch, so only parts are compiled whose graph does not:
    the whole would be compiled anew for each number of attention groups.
    """
    blocks = model.trajectory_encoder.transformer["h"]
    parts: list[tuple[nn.Module, str]] = [(model.navigator, "forward")]
    parts += [part for block in blocks for part in ((block.mlp, "forward"), (block.attn, "attend"))]
    for module, name in parts:
        setattr(module, name, torch.compile(getattr(module, name), dynamic=True))
    try:
        batch = next(loader.in_order())
        objective(model(batch), batch).total.backward()
    except Exception as error:  # a compiler that is missing, a kind of machine it does not know: no closed list
        for module, name in parts:
            delattr(module, name)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        logger.warning(f"training.compile: torch.compile fails here ({reason[:200]}); training goes on without it")
    model.zero_grad()
