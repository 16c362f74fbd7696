"""The least time that this machine could take for a training step: its rates, and what a step must do."""

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.batch import Batch
from models.hoser import HOSER
from utils.training.losses import HOSERLoss

PRODUCT_SIZE = 4096  # of the square float32 matrices that are multiplied
COPY_BYTES = 2**30
REPEATS = 3

# Attention has two products of every pair of steps (scores, and sums of values), and each of them two more backwards.
PRODUCTS_OF_PAIRS = 2 * 3
# Of each edge of a graph layer, a vector is gathered, scored and added: once forwards, twice backwards.
EDGE_PASSES = 3


def machine_rates(device: torch.device) -> dict[str, float]:
    """Rate of a large float32 matrix product, and of a large copy (bytes read and written); medians."""
    a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=device) for _ in range(2))
    source = torch.zeros(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    product = statistics.median(seconds(device, torch.matmul, a, b)[0] for _ in range(REPEATS))
    copy = statistics.median(seconds(device, target.copy_, source)[0] for _ in range(REPEATS))
    return {
        "matmul_gflop_per_s": 2 * PRODUCT_SIZE**3 / product / 1e9,
        "copy_gb_per_s": 2 * COPY_BYTES / copy / 1e9,
    }


def seconds(device: torch.device, work: Callable, *arguments: Any) -> tuple[float, Any]:
    """Seconds that `work(*arguments)` takes on `device`, and what it returns."""
    synchronize(device)
    began = time.perf_counter()
    result = work(*arguments)
    synchronize(device)
    return time.perf_counter() - began, result


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(model: HOSER, loss_function: HOSERLoss, batch: Batch) -> float:
    """Floating-point operations of the matrix products of one training step, on real steps only.

    They are counted as they happen on a CPU, forwards and backwards (the sparse products of a GPU would count as dense
    ones); what attention spends on padding is taken off.
    """
    model, batch = deepcopy(model).cpu(), batch.to("cpu")
    with FlopCounterMode(display=False) as counter:
        loss_function(model(batch), batch)["loss"].backward()
    blocks = model.trajectory_encoder.transformer["h"]
    width = blocks[0].attn.c_proj.in_features
    padded = sum(group.num_trips * group.max_len**2 for group in batch.groups)
    real = int((batch.trip_len**2).sum())
    return counter.get_total_flops() - len(blocks) * PRODUCTS_OF_PAIRS * 2 * width * (padded - real)


def count_graph_bytes(model: HOSER, batch: Batch) -> float:
    """Bytes that the two road graph layers must read and write in one training step: a vector for each edge."""
    encoder = model.road_network_encoder
    second_graph, road = encoder.incoming_graph(torch.cat([batch.road_id, batch.candidate_road_id]).unique())
    first_graph, _ = encoder.incoming_graph(road)
    edges = len(first_graph.source) + len(second_graph.source)
    width = encoder.road_gat.convs[0].att.shape[-1]
    return 2 * EDGE_PASSES * edges * width * 4
