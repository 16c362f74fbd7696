"""On a GPU: the Road Network Encoder's part of a training step, handed to the GPU as one operation."""

import gc

import torch
from loguru import logger

from models.hoser import HOSER
from utils.runtime.precision import Precision


def record_network_embedding(model: HOSER, precision: Precision) -> None:
    """Record the encoder's operations, forward and backward, as CUDA graphs, which training steps replay.

    To hand an operation to a GPU takes a processor up to 20 us, and the GPU may wait for it. The embedding of the whole
    network, a quarter of a step's operations, is the same in each step but for its weights, which stay where they are.
    Evaluations compute as ever. The gradients stay in the graph's memory and are written anew with each backward pass,
    so those of two passes cannot be added up.
    """
    gc.collect()  # an earlier trial's graphs hold their model, and it holds them
    encoder = model.road_network_encoder.train()
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # the library's own recording causes it
    try:
        with precision.autocast(cache_enabled=False):
            torch.cuda.make_graphed_callables(encoder, ())
    except RuntimeError as error:  # of memory or of CUDA: there is a way without
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        logger.warning(f"no CUDA graph of the road network is recorded, training steps take longer ({reason})")
