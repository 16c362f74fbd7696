"""Results do not depend on the number of threads, to the last bit."""

import copy
import functools
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scripts import MINI_CITY, MINI_CONFIG
from thread_bits import EveryNumberOfThreads
from torch import nn

from models.hoser import HOSER
from models.lmtad import LMTAD, LMTADConfig
from models.thread_count import (
    FEW_ROWS,
    MANY_ROWS,
    LayerNorm,
    enough_rows,
    linear_to_one,
    product,
    softmax,
    threads_for,
)
from utils.config import Config, load_config
from utils.data.dataset import City, load_city
from utils.data.loader import make_loaders
from utils.generation.paths import PathModel
from utils.generation.queries import sample_queries
from utils.generation.reachability import Reachability
from utils.generation.search import SearchRule, search_trips
from utils.runtime.precision import Precision
from utils.training import engine
from utils.training.engine import Learner, make_optimizer, optimizer_step, train_epoch
from utils.training.losses import HOSERLoss

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Of a run, with which it could compute in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of the mini city, with 9 zones: a product with 9 rows is one that threads share in another way."""
    path = tmp_path_factory.mktemp("config") / "Mini.yaml"
    path.write_text(MINI_CONFIG.replace("zone_id_num_embeddings: 8", "zone_id_num_embeddings: 9"))
    return load_config("Mini", str(path))


@pytest.fixture(scope="module")
def mini(config: Config, tmp_path_factory: pytest.TempPathFactory) -> City:
    return load_city("Mini", config, shutil.copytree(MINI_CITY, tmp_path_factory.mktemp("data") / "Mini"))


def test_products_with_few_rows_do_depend_on_it_and_this_check_notices() -> None:
    """Else the tests below could not fail."""
    x, weight = torch.randn(12, 256), torch.randn(256, 384)
    with EveryNumberOfThreads() as check:
        for rows in range(1, 13):
            x[:rows] @ weight
    assert check.differing and check.compared == 24  # slices and products


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9, 11, 40])
def test_a_training_step(config: Config, mini: City, batch_size: int) -> None:
    loader = make_loaders(mini, config, CPU)["train"]
    torch.manual_seed(0)
    model, loss_function = HOSER(config, mini.features).train(), HOSERLoss(loader.statistics)
    optimizer = make_optimizer(model, config.optimizer_config)
    batch = loader.batch(np.arange(batch_size))
    with EveryNumberOfThreads() as check, threads_for(model.fewest_rows(batch)):
        loss_function(model(batch), batch)["loss"].backward()
        optimizer_step(optimizer, Precision("float32", CPU), 1e-3, 1.0)
    assert not check.differing
    assert check.compared or model.fewest_rows(batch) < FEW_ROWS


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 7), (1, 11), (3, 3), (12, 14), (4, 30)])
def test_a_training_step_of_a_teacher(shape: tuple[int, int], dropout: float) -> None:
    torch.manual_seed(0)
    model = LMTAD(LMTADConfig(block_size=64, vocab_size=300, n_layer=2, n_head=4, n_embd=128, dropout=dropout))
    tokens = torch.randint(0, 300, shape)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with EveryNumberOfThreads() as check, threads_for(tokens.numel()):
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer_step(optimizer, Precision("float32", CPU), 1e-3, 1.0)
    assert not check.differing


def test_sums_over_many_steps() -> None:
    """PyTorch cuts them among threads from 32,768 numbers on."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(MANY_ROWS + 5, 4), torch.randn(1, 4), torch.randn(1, requires_grad=True)
    with EveryNumberOfThreads() as check:
        x.sum()
    assert check.differing  # else this test could not fail
    with EveryNumberOfThreads() as check:
        linear_to_one(x, weight, bias).backward(x[:, :1])
    assert not check.differing
    assert bias.grad.item() == pytest.approx(x[:, 0].double().sum().item(), rel=1e-3)
    torch.testing.assert_close(linear_to_one(x, weight, bias), F.linear(x, weight, bias))


def test_an_evaluation_and_a_search(config: Config, mini: City) -> None:
    loader = make_loaders(mini, config, CPU)["train"]
    queries = sample_queries(mini.trips("train"), mini.network.num_roads, 150, 0)
    with EveryNumberOfThreads() as check, torch.no_grad():
        model = HOSER(config, mini.features).eval()
        network = model.embed_network()
        for batch in loader.in_order():
            model(batch, network)
        paths = PathModel(model, mini.network, loader.statistics)
        found = list(search_trips(paths, Reachability(mini.network), queries, SearchRule(max_expansions=3), 256))
    assert len(found) == len(queries)
    assert not check.differing and check.compared


def test_a_number_that_changes_while_a_run_trains_changes_nothing(
    config: Config, mini: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for numbers in ([1], [2], [3, 1, 2, 5]):
        loader = make_loaders(mini, config, CPU)["train"]
        torch.manual_seed(0)
        model = HOSER(config, mini.features)
        learner = Learner.from_config(model, config, loader)

        def each(items, device, numbers=numbers):
            for i, item in enumerate(items):
                torch.set_num_threads(numbers[i % len(numbers)])
                yield item

        monkeypatch.setattr(engine, "on_free_cores", each)
        for epoch in range(2):
            for _ in train_epoch(learner, loader, HOSERLoss(loader.statistics), 0, epoch, 0):
                pass
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert all(torch.equal(value, state[name]) for state in states[1:]), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LayerNorm(16), nn.LayerNorm(16)),
        (LayerNorm(16, bias=False), nn.LayerNorm(16, bias=False)),
        (softmax, nn.Softmax(dim=-1)),
        (lambda x: product(x, torch.ones(16, 3, dtype=x.dtype)), lambda x: x @ torch.ones(16, 3, dtype=x.dtype)),
    ],
    ids=["layer norm", "layer norm without bias", "softmax", "product"],
)
def test_the_layers_are_those_of_pytorch(
    ours: Callable, theirs: Callable, dtype: torch.dtype, tolerance: float
) -> None:
    """In double precision; PyTorch's own gradient of layer norm is 1.5 off in bfloat16."""
    torch.manual_seed(0)
    x, d_out = torch.randn(2, 30, 23, 16).to(dtype).unbind()
    found = []
    for layer, precision in ((ours, dtype), (copy.deepcopy(theirs), torch.float64)):
        own = x.detach().to(precision, copy=True).requires_grad_()
        is_module = isinstance(layer, nn.Module)
        if is_module and precision == torch.float64:
            layer = layer.double()
        out = layer(own)
        out.backward(d_out[..., : out.shape[-1]].to(precision))
        parameters = list(layer.parameters()) if is_module else []
        found.append([out.detach(), own.grad, *(p.grad for p in parameters)])
        for parameter in parameters:
            parameter.grad = None
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_attention_with_dropout_is_that_of_pytorch() -> None:
    model = LMTAD(LMTADConfig(block_size=64, vocab_size=300, n_layer=1, n_head=4, n_embd=32, dropout=0.3))
    attention = model.transformer["h"][0].attn.train()
    q, k, v = torch.randn(3, 2, 4, 11, 8).unbind()
    for p in (1e-9, 0.3):
        attention.dropout = p
        found = []
        for attend in (
            attention._attend,
            functools.partial(F.scaled_dot_product_attention, dropout_p=p, is_causal=True),
        ):
            torch.manual_seed(1)
            found.append(attend(q, k, v))
        torch.testing.assert_close(*found)


def test_rows_are_added_where_there_are_few() -> None:
    x = torch.ones(3, 2)
    assert enough_rows(x).shape == (FEW_ROWS, 2) and enough_rows(x).sum() == 6
    assert enough_rows(torch.ones(FEW_ROWS, 2)).shape == (FEW_ROWS, 2)
    assert product(x, torch.ones(2, 5)).shape == (3, 5)
    with threads_for(FEW_ROWS - 1):
        assert torch.get_num_threads() == 1
    with threads_for(FEW_ROWS):
        assert torch.get_num_threads() == 2
