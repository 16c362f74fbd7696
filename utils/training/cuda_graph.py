"""On a GPU: the Road Network Encoder's part of a training step, handed to the GPU as one operation."""

import torch
from loguru import logger
from torch import Tensor

from models.hoser import HOSER
from utils.runtime.precision import Precision


def record_network_embedding(model: HOSER, precision: Precision) -> None:
    """Record the encoder's operations, forward and backward, as CUDA graphs, which training steps replay.

    To hand an operation to a GPU takes the processor a while, in which the GPU may be idle. The embedding of the whole
    network, a third of a step's operations, is the same in each step but for its weights, which stay where they are.
    Evaluations compute as ever.

    What a step returns is the graph's memory, which the next one overwrites: embeddings, and gradients, so those of
    two passes cannot be added up. A deep copy of the model would replay with the weights of the original.
    """
    device, encoder = precision.device, model.road_network_encoder.train()
    forward = encoder.forward

    def forward_in_autocast() -> tuple[Tensor, Tensor]:  # as in a step, whose backward pass is outside it
        with precision.autocast(cache_enabled=False):
            return forward()

    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # the library's own recording causes it
    encoder.forward = forward_in_autocast
    try:
        # The current device's operations are recorded, and a recording that fails may leave another stream behind.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            torch.cuda.make_graphed_callables(encoder, ())
    except torch.OutOfMemoryError:
        del encoder.forward
        logger.warning("too little memory on the GPU for a CUDA graph of the road network: steps take longer")
        return
    replay = encoder.forward
    encoder.forward = lambda: replay() if encoder.training else forward()
