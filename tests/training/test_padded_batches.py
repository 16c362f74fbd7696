"""Batches padded to one shape, as a GPU replays them: the same numbers, whatever stands in the padding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.batch import Prediction
from models.hoser import HOSER
from utils.config import Config, load_config
from utils.data import batch_shape
from utils.data.batch_shape import BatchShape, common_shape
from utils.data.dataset import City, load_city
from utils.data.loader import BatchLoader, make_loaders
from utils.runtime.precision import Precision
from utils.training import cuda_graph
from utils.training.cuda_graph import PaddedBatch, RecordedModel, copy_shared_gradients
from utils.training.losses import HOSERLoss

BATCH_SIZE = 32


@pytest.fixture
def config() -> Config:
    sizes = ["road_network_encoder_config.zone_id_num_embeddings=8", f"optimizer_config.batch_size={BATCH_SIZE}"]
    return load_config("Mini", overrides=sizes)


@pytest.fixture
def city(config: Config, mini_city: Path) -> City:
    return load_city("Mini", config, mini_city)


@pytest.fixture(params=["several groups", "one group"])
def loader(config: Config, city: City, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BatchLoader:
    """Of batches that have a shape; with so few trips, one group of them is cheapest on a GPU."""
    if request.param == "several groups":
        monkeypatch.setattr(batch_shape, "PAIRS_OF_A_GROUP", 0)
    loader = make_loaders(city, config, "cpu")["train"]
    loader.shape = loader.common_shape()
    assert (len(loader.shape.groups) > 1) == (request.param == "several groups")
    return loader


def test_a_padded_batch_has_the_values_and_gradients_of_the_batch(
    loader: BatchLoader, config: Config, city: City
) -> None:
    """The memory still holds what the batches before left there."""
    model, loss_function = HOSER(config, city.features), HOSERLoss(loader.statistics)
    memory, fitting = PaddedBatch(loader), 0
    for epoch in range(3):
        for batch in loader.shuffled(1, epoch):  # the last one has fewer trips
            if not memory.holds(batch):
                continue
            fitting += 1
            memory.fill(batch)
            padded, expected = model(memory.batch), model(batch)
            assert len(padded.logits) == loader.shape.num_candidates >= len(expected.logits)
            found = Prediction(*(memory.without_padding(values, batch) for values in vars(padded).values()))
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.time_pred, expected.time_pred, rtol=1e-4, atol=1e-5)
            ours, plain = (
                torch.autograd.grad(loss_function(prediction, batch)["loss"], list(model.parameters()))
                for prediction in (found, expected)
            )
            for a, b in zip(ours, plain, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert fitting >= 0.9 * 3 * loader.num_batches


def test_every_tensor_of_a_batch_is_copied(loader: BatchLoader) -> None:
    """A model may read any of them, also one that is added."""
    memory = PaddedBatch(loader)
    batch = next(batch for batch in loader.shuffled(0, 0) if memory.holds(batch))
    memory.fill(batch)
    for own, given in [(memory.batch, batch), *zip(memory.batch.groups, batch.groups, strict=True)]:
        for name, values in vars(given).items():
            if isinstance(values, Tensor):
                assert torch.equal(getattr(own, name)[: len(values)], values), name
    assert memory.batch.max_candidates == loader.max_candidates >= batch.max_candidates
    past_end = memory.batch.slot[len(batch.slot) :]
    last_group = memory.batch.groups[-1]
    assert past_end.unique().tolist() == [loader.shape.last_place]
    assert not last_group.distance[-1].any()  # of the trip that is never there
    assert not set(past_end.tolist()) & set(batch.slot.tolist())


def test_what_is_not_of_trips_steps_or_candidates_is_not_recorded(
    loader: BatchLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor that was added to batches, or to predictions: nobody knows what its padding would mean."""
    memory = PaddedBatch(loader)
    batch = next(batch for batch in loader.shuffled(0, 0) if memory.holds(batch))
    for values in (torch.zeros(3), torch.tensor(1.0)):
        with pytest.raises(RuntimeError, match=r"a prediction has . rows, not one for each trip, step or candidate"):
            memory.without_padding(values, batch)
    make_batch = loader.batch
    monkeypatch.setattr(loader, "batch", lambda trips: replace(make_batch(trips), position=torch.zeros(5)))
    with pytest.raises(RuntimeError, match=r"Batch\.position has 5 rows, not one for each trip, step or candidate"):
        PaddedBatch(loader)


def test_gradients_that_are_one_memory_are_copied() -> None:
    a, b, c, unused = (torch.nn.Parameter(torch.ones(2)) for _ in range(4))
    copy_shared_gradients([a, b, c, unused], [(a + b) * c])
    assert [len(parameter._backward_hooks or ()) for parameter in (a, b, c, unused)] == [1, 1, 0, 0]
    ((a + b) * c).sum().backward()
    assert a.grad.data_ptr() != b.grad.data_ptr()
    assert torch.equal(a.grad, torch.ones(2))
    assert torch.equal(c.grad, torch.full((2,), 2.0))
    whole, first, second = (torch.nn.Parameter(torch.ones(size)) for size in (2, 1, 1))
    copy_shared_gradients([whole, first, second], [whole + torch.cat([first, second])])  # parts of one memory
    assert [len(parameter._backward_hooks or ()) for parameter in (whole, first, second)] == [1, 1, 1]


def test_large_batches_are_not_recorded(
    loader: BatchLoader, config: Config, city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Here a recording would be an error: there is no GPU.)"""
    for limit in ("MOST_STEPS", "MOST_PAIRS"):
        loader.shape = None
        with monkeypatch.context() as patch:
            patch.setattr(cuda_graph, limit, 8)
            recorded = RecordedModel(HOSER(config, city.features), Precision("float32", loader.device), loader)
            recorded.record()
        assert loader.shape is None
        assert not recorded.replays(loader.batch(np.arange(2)))


def test_a_batch_that_does_not_fit_is_computed_as_ever(loader: BatchLoader, config: Config, city: City) -> None:
    memory = PaddedBatch(loader)
    longest_first = np.argsort(-np.diff(city.trips("train").offset))[:BATCH_SIZE]
    batch = loader.batch(longest_first)
    assert not memory.holds(batch)
    if len(loader.shape.groups) > 1:  # these trips are cut as without a shape
        assert sum(group.num_trips for group in batch.groups) == BATCH_SIZE
    model = HOSER(config, city.features)
    recorded = RecordedModel(model, Precision("float32", loader.device), loader)
    torch.testing.assert_close(recorded(batch).logits, model(batch).logits)


def test_a_batch_with_more_steps_or_candidates_does_not_fit(loader: BatchLoader) -> None:
    batch = loader.batch(np.arange(4))
    assert PaddedBatch(loader).holds(batch)
    for few in (replace(loader.shape, num_steps=8), replace(loader.shape, num_candidates=8)):
        loader.shape = few
        assert not PaddedBatch(loader).holds(batch)


def test_the_shape_holds_nearly_all_batches_and_little_else() -> None:
    random = np.random.default_rng(3)
    length = random.geometric(0.05, 5000) + 1
    candidates = 2 * length
    shape = common_shape(length, candidates, 64)
    batches = [random.permutation(5000)[:64] for _ in range(1000)]
    descending = [-np.sort(-length[batch]) for batch in batches]
    held = [
        shape.holds(lengths) and lengths.sum() <= shape.num_steps and 2 * lengths.sum() <= shape.num_candidates
        for lengths in descending
    ]
    assert np.mean(held) > 0.95
    assert shape.num_steps < 1.5 * np.mean([lengths.sum() for lengths in descending])
    assert sum(trips for trips, _ in shape.groups) == 65
    assert {size % 8 for size in (shape.num_steps, shape.num_candidates, *(places for _, places in shape.groups))} == {
        0
    }


def test_trips_of_very_different_lengths_are_padded_in_groups() -> None:
    length = np.ceil(np.random.default_rng(0).lognormal(np.log(20), 1.0, 20_000)).astype(np.int64)
    for batch_size in (64, 512):
        shape = common_shape(length, length, batch_size)
        longest = max(places for _, places in shape.groups)
        assert 1 < len(shape.groups) <= 4
        assert shape.num_pairs < 0.05 * batch_size * longest**2


def test_one_very_long_trip_does_not_make_all_batches_large() -> None:
    length = np.full(20_000, 10)
    length[7] = 5000
    shape = common_shape(length, 2 * length, 64)
    assert (shape.num_steps, max(places for _, places in shape.groups)) == (640, 16)
    assert not shape.holds(np.array([5000, *[10] * 63]))


@pytest.mark.parametrize(("trips", "batch_size"), [(1, 1), (1, 64), (3, 2), (100, 7), (64, 64)])
def test_small_data_has_a_shape_too(trips: int, batch_size: int) -> None:
    length = np.arange(1, trips + 1)
    shape = common_shape(length, length, batch_size)
    assert shape.num_trips == min(trips, batch_size)
    assert sum(each for each, _ in shape.groups) == shape.num_trips + 1
    assert shape.holds(np.sort(length)[: shape.num_trips][::-1])
    assert not shape.holds(np.ones(shape.num_trips + 1, dtype=np.int64))
    assert isinstance(shape, BatchShape)
