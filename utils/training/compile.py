"""`training.compile`: the parts of the model that torch.compile can fuse, or a warning and the model as it is."""

import torch
from loguru import logger
from torch import nn

from models.hoser import HOSER
from utils.data.loader import BatchLoader
from utils.errors import first_line
from utils.runtime.cores import THREADS
from utils.runtime.precision import Precision


def compile_model(model: HOSER, loader: BatchLoader, precision: Precision) -> None:
    """Compile `model` in place, and try it on a batch: what fails then would fail in the first step.

    It is tried as it will be used: in the precision of training, with gradients and without. Of several processes all
    compile, or none. State dicts stay as they are. Shapes vary from batch to batch, so only parts are compiled whose
    graph does not: the whole would be compiled again for each number of attention groups.
    """
    blocks = model.trajectory_encoder.transformer["h"]
    parts: list[tuple[nn.Module, str]] = [(model.navigator, "forward")]
    parts += [(block.mlp, "forward") for block in blocks]
    THREADS.keep()  # what is compiled is compiled for a number of threads
    reason = _try(parts, model, loader, precision)
    failures = loader.processes.all_reduce(torch.tensor(0 if reason is None else 1))
    if failures:
        THREADS.may_change = True
        for module, name in parts:
            vars(module).pop(name, None)
        logger.warning(
            f"training.compile: torch.compile fails here ({reason or 'on another process'}); it has no effect"
        )


def _try(parts: list[tuple[nn.Module, str]], model: HOSER, loader: BatchLoader, precision: Precision) -> str | None:
    """Compile the parts; why the compiled model cannot be used, or None if it can. Waits for no other process."""
    try:
        # In seconds, where no compiler is found; the model takes half a minute to come that far.
        torch.compile(torch.nn.functional.gelu, dynamic=True)(torch.ones(8, device=loader.device))
        for module, name in parts:
            setattr(module, name, torch.compile(getattr(module, name), dynamic=True))
        batch = next(loader.in_order())
        for training in (True, False):
            model.train(training)
            with torch.set_grad_enabled(training), precision.autocast():
                prediction = model(batch, None if training else model.embed_network())
            if training:
                (prediction.logits.float().sum() + prediction.time_pred.float().sum()).backward()
    except Exception as error:  # a compiler that is missing, a kind of machine it does not know: no closed list
        return first_line(error)
    finally:
        model.zero_grad()
    return None
