"""Each shortcut of the model equals the plain formula, in values and in gradients."""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from published import plain_attention, plain_edge_attention, plain_navigator
from torch import Tensor, nn

from models import edge_attention, road_network_encoder
from models.batch import AttentionGroup, MessageGraph, NetworkFeatures
from models.config import ModelConfig, NavigatorConfig, RoadNetworkEncoderConfig, TrajectoryEncoderConfig
from models.graph_layers import GATv2Conv, GCNConv, gcn_adjacency, with_self_loops
from models.hoser import HOSER
from models.navigator import Navigator
from models.ragged import distinct, ragged_arange
from models.relative_attention import PaddedLayout, RelativeAttention, padded_layout
from models.road_network_encoder import RoadNetworkEncoder
from models.trajectory_encoder import Block, CausalSelfAttention
from utils.data.loader import GROUP_PAIRS, BatchLoader, RoadTables
from utils.data.road_network import RoadNetwork, candidate_heading
from utils.data.trips import TimeStatistics, Trips, candidate_index
from utils.training.losses import HOSERLoss

NUM_ROADS, NUM_ZONES, WIDTH = 40, 5, 12


@pytest.fixture(scope="module")
def pyg() -> ModuleType:
    """The models of PyTorch Geometric, whose import takes seconds."""
    from torch_geometric.nn import models

    return models


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def assert_same_gradients(module: nn.Module, ours: Tensor, plain: Tensor, rtol: float = 1e-4) -> None:
    """d(sum of squares) / d(parameter) is the same for both results."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = [torch.autograd.grad(out.square().sum(), parameters, allow_unused=True) for out in (ours, plain)]
    scale = max(g.abs().max() for g in gradients[1] if g is not None)
    for name, a, b in zip(names, *gradients, strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6 * float(scale), msg=lambda m, n=name: f"{n}: {m}")


# Graph layers ---------------------------------------------------------------------------------------------------


def message_graph(source: Tensor, target: Tensor, edge_attr: Tensor, num_nodes: int) -> MessageGraph:
    """A graph from all nodes to all nodes."""
    ptr = torch.searchsorted(target, torch.arange(num_nodes + 1))
    return MessageGraph(source, target, ptr, edge_attr, torch.arange(num_nodes))


@pytest.fixture(params=["edges at once", "edges in blocks of 7", "in blocks, as on a GPU"])
def edge_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way that attention over edges can go."""
    if "in blocks" in request.param:
        monkeypatch.setitem(edge_attention.BLOCK_EDGES, "cpu", 7)
    if "GPU" in request.param:
        monkeypatch.setitem(edge_attention.BY_BAGS, "cpu", False)


def random_graph(num_nodes: int, num_edges: int, seed: int) -> Tensor:
    """Edges with repeated ones and self-loops; the last quarter of the nodes is isolated."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, num_nodes - num_nodes // 4, (2, num_edges), generator=generator)
    loops = torch.tensor([[0, 2, 3], [0, 2, 3]])
    return torch.cat([edges, edges[:, :5], loops], dim=1)


@pytest.mark.usefixtures("edge_path")
@pytest.mark.parametrize("seed", range(5))
def test_two_gatv2_layers_equal_those_of_pytorch_geometric(seed: int, pyg: ModuleType) -> None:
    edges = random_graph(NUM_ROADS, 150, seed)
    attr, x = torch.randn(edges.shape[1], 2), torch.randn(NUM_ROADS, WIDTH)
    theirs = pyg.GAT(WIDTH, WIDTH, num_layers=2, out_channels=WIDTH, edge_dim=2, v2=True)
    ours = road_network_encoder.GraphStack(GATv2Conv(WIDTH, WIDTH, 2), GATv2Conv(WIDTH, WIDTH, 2))
    ours.load_state_dict(theirs.state_dict())
    (source, target), looped_attr = with_self_loops(edges, attr, NUM_ROADS)
    graph = message_graph(source, target, looped_attr, NUM_ROADS)
    out = ours.convs[1](ours.convs[0](x, graph).relu(), graph)
    expected = theirs(x, edges, edge_attr=attr)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    out.square().sum().backward()
    expected.square().sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("edge_path")
@pytest.mark.parametrize("seed", range(3))
def test_the_gradients_of_attention_over_edges_are_those_of_its_values(seed: int) -> None:
    edges, attr = with_self_loops(random_graph(12, 30, seed), torch.randn(38, 2, dtype=torch.float64), 12)
    graph = message_graph(*edges, attr, 12)
    shapes = (12, 5), (12, 5), (5, 2), (5,)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(edge_attention.EdgeAttention.apply, (*inputs, graph))


@pytest.mark.usefixtures("edge_path")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_over_edges_is_its_formula_in_plain_operations(precision: torch.dtype) -> None:
    """Sums are kept in float32, also where the vectors that come in are not."""
    edges, attr = with_self_loops(random_graph(30, 100, 0), torch.randn(108, 2), 30)
    graph = message_graph(*edges, attr, 30)
    l, r = (torch.randn(30, WIDTH).to(precision).requires_grad_() for _ in range(2))  # noqa: E741
    inputs = [l, r, torch.randn(WIDTH, 2, requires_grad=True), torch.randn(WIDTH, requires_grad=True)]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        out = edge_attention.edge_attention(*inputs, graph)
    expected = plain_edge_attention(*inputs, graph)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for ours, plain in zip(
        *(torch.autograd.grad(value.square().sum(), inputs) for value in (out, expected)), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_two_gcn_layers_equal_those_of_pytorch_geometric(seed: int, pyg: ModuleType) -> None:
    edges = random_graph(NUM_ROADS, 150, seed)
    weight, x = torch.rand(edges.shape[1]), torch.randn(NUM_ROADS, WIDTH)
    theirs = pyg.GCN(WIDTH, WIDTH, num_layers=2, out_channels=WIDTH)
    ours = road_network_encoder.GraphStack(GCNConv(WIDTH, WIDTH), GCNConv(WIDTH, WIDTH))
    ours.load_state_dict(theirs.state_dict())
    adjacency = gcn_adjacency(edges, weight, NUM_ROADS)
    out = ours.convs[1](ours.convs[0](x, adjacency).relu(), adjacency)
    torch.testing.assert_close(out, theirs(x, edges, edge_weight=weight), rtol=1e-5, atol=1e-6)


def test_a_graph_without_any_edge_has_loops_only(pyg: ModuleType) -> None:
    none = torch.zeros(2, 0, dtype=torch.int64)
    x = torch.randn(4, WIDTH)
    gat, gcn = pyg.GAT(WIDTH, WIDTH, 1, WIDTH, edge_dim=2, v2=True), pyg.GCN(WIDTH, WIDTH, 1, WIDTH)
    conv, gcn_conv = GATv2Conv(WIDTH, WIDTH, 2), GCNConv(WIDTH, WIDTH)
    conv.load_state_dict(gat.convs[0].state_dict())
    gcn_conv.load_state_dict(gcn.convs[0].state_dict())
    (source, target), attr = with_self_loops(none, torch.zeros(0, 2), 4)
    out = conv(x, message_graph(source, target, attr, 4))
    torch.testing.assert_close(out, gat(x, none, edge_attr=torch.zeros(0, 2)))
    torch.testing.assert_close(gcn_conv(x, gcn_adjacency(none, torch.zeros(0), 4)), gcn(x, none))


# Restricting the network to what a batch touches ---------------------------------------------------------------


def random_features(seed: int = 0) -> NetworkFeatures:
    generator = torch.Generator().manual_seed(seed)
    edges = random_graph(NUM_ROADS, 120, seed)
    edges = edges[:, edges[0] != edges[1]]
    zone_edges = random_graph(NUM_ZONES, 12, seed)[:, :12]
    return NetworkFeatures(
        road_attr_len=torch.randn(NUM_ROADS, generator=generator),
        road_attr_type=torch.randint(0, 3, (NUM_ROADS,), generator=generator),
        road_attr_lon=torch.randn(NUM_ROADS, generator=generator),
        road_attr_lat=torch.randn(NUM_ROADS, generator=generator),
        road_edge_index=edges,
        intersection_attr=torch.rand(edges.shape[1], 2, generator=generator),
        zone_edge_index=zone_edges,
        zone_edge_weight=torch.rand(zone_edges.shape[1], generator=generator),
        road2zone=torch.randint(0, NUM_ZONES, (NUM_ROADS,), generator=generator),
    )


ENCODER = RoadNetworkEncoderConfig(4, 2, 2, 2, 2, WIDTH, WIDTH, zone_id_num_embeddings=NUM_ZONES)
CONFIG = ModelConfig(ENCODER, TrajectoryEncoderConfig(WIDTH, 3, 2, 0.0, 100), NavigatorConfig(WIDTH))


@pytest.mark.parametrize("roads", [[0], [39], [3, 4, 17], list(range(NUM_ROADS))])
def test_embedding_some_roads_equals_embedding_all(roads: list[int]) -> None:
    encoder = RoadNetworkEncoder(ENCODER, random_features())
    road = torch.tensor(roads)
    part, whole = encoder.embed_roads(road), encoder.embed_all_roads()[road]
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)
    assert_same_gradients(encoder, part, whole)


def test_embedding_all_roads_in_chunks_equals_embedding_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = RoadNetworkEncoder(ENCODER, random_features())
    at_once = encoder.embed_all_roads().detach()
    monkeypatch.setattr(road_network_encoder, "CHUNK", 7)
    with torch.no_grad():
        torch.testing.assert_close(encoder.embed_all_roads(), at_once, rtol=1e-5, atol=1e-6)


def test_the_graphs_of_a_loaded_checkpoint_replace_those_of_the_data() -> None:
    first, second = (RoadNetworkEncoder(ENCODER, random_features(seed)) for seed in (0, 0))
    changed = second.state_dict()
    changed["intersection_attr"] = changed["intersection_attr"] + 1.0
    changed["zone_edge_weight"] = changed["zone_edge_weight"] * 3.0
    before = first.embed_all_roads(), first.embed_zones()
    first.load_state_dict(changed)
    second.load_state_dict(changed)
    fresh = RoadNetworkEncoder(ENCODER, random_features(0))
    fresh.load_state_dict(changed)
    torch.testing.assert_close(first.embed_all_roads(), fresh.embed_all_roads())
    assert not torch.allclose(first.embed_all_roads(), before[0])
    assert not torch.allclose(first.embed_zones(), before[1])


# Attention -----------------------------------------------------------------------------------------------------


HEADS = 3


def attention_layout(lengths: list[int], sizes: list[int]) -> PaddedLayout:
    """Trips of these lengths, `sizes` of them at a time in a group, with random distances and intervals."""
    groups, slots, trip, first_place = [], [], 0, 0
    for size in sizes:
        own = torch.tensor(lengths[trip : trip + size])
        longest = int(own.max())
        row, place = ragged_arange(own)
        shape = (size, longest, longest)
        groups.append(AttentionGroup(size, longest, torch.rand(shape), torch.rand(shape)))
        slots.append(first_place + row * longest + place)
        trip, first_place = trip + size, first_place + size * longest
    return padded_layout(torch.cat(slots), tuple(groups), HEADS)


def test_attention_equals_the_formula_with_relative_vectors_of_each_pair() -> None:
    attn = CausalSelfAttention(WIDTH, HEADS, dropout=0.0)
    lengths, sizes = [9, 9, 7, 4, 3, 1], [2, 1, 3]
    layout = attention_layout(lengths, sizes)
    x = torch.randn(sum(lengths), WIDTH)
    ours = attn(x, layout)
    plain, step, trip = [], 0, 0
    for group, size in zip(layout.groups, sizes, strict=True):
        for i in range(size):
            n = lengths[trip + i]
            matrices = (matrix[i : i + 1, :n, :n] for matrix in (group.distance, group.time_interval))
            plain.append(plain_attention(attn, x[step : step + n].unsqueeze(0), *matrices).squeeze(0))
            step += n
        trip += size
    plain = torch.cat(plain)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert_same_gradients(attn, ours, plain)


def test_a_trip_is_not_changed_by_the_trips_padded_with_it() -> None:
    block = Block(WIDTH, HEADS, 0.0)
    layout = attention_layout([6, 2], [2])
    x = torch.randn(8, WIDTH)
    together = block(x, layout)
    group = layout.groups[0]
    alone = AttentionGroup(1, 2, group.distance[1:, :2, :2], group.time_interval[1:, :2, :2])
    alone = block(x[6:], padded_layout(torch.arange(2), (alone,), HEADS))
    torch.testing.assert_close(together[6:], alone, rtol=1e-5, atol=1e-6)


def test_a_step_does_not_see_the_steps_after_it() -> None:
    block = Block(WIDTH, HEADS, 0.0)
    layout = attention_layout([6], [1])
    x = torch.randn(6, WIDTH)
    changed = x.clone()
    changed[4:] += 1.0
    torch.testing.assert_close(block(x, layout)[:4], block(changed, layout)[:4])


def test_the_gradients_of_attention_are_those_of_its_values() -> None:
    layout = attention_layout([5, 4, 2, 1], [2, 2])
    groups = tuple(
        replace(group, distance=group.distance.double(), time_interval=group.time_interval.double())
        for group in layout.groups
    )
    layout = replace(layout, groups=groups)
    shapes = (12, 3 * HEADS * 4), (4, 2), (4, 2)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(RelativeAttention.apply, (*inputs, layout))


# Batches and the navigator -------------------------------------------------------------------------------------


def random_city(seed: int = 0) -> tuple[RoadNetwork, Trips]:
    """A network of random relations, and random walks of 2 to 15 roads on it."""
    rng = np.random.default_rng(seed)
    degree = rng.integers(1, 5, NUM_ROADS)
    reach_ptr = np.concatenate([[0], np.cumsum(degree)])
    reach_road = np.concatenate([rng.choice(NUM_ROADS, n, replace=False) for n in degree])
    center = rng.uniform([12.4, 55.6], [12.5, 55.7], (NUM_ROADS, 2))
    end = center + rng.normal(0, 1e-3, (NUM_ROADS, 2))
    owner = np.repeat(np.arange(NUM_ROADS), degree)
    network = RoadNetwork(
        center=center,
        end=end,
        bounds=np.stack([center.min(axis=0), center.max(axis=0)]),
        road_attr_len=np.zeros(NUM_ROADS, np.float32),
        road_attr_type=np.zeros(NUM_ROADS, np.int64),
        road_attr_lon=np.zeros(NUM_ROADS, np.float32),
        road_attr_lat=np.zeros(NUM_ROADS, np.float32),
        highway_classes=("primary",),
        reach_ptr=reach_ptr,
        reach_road=reach_road,
        reach_heading=candidate_heading(end[owner], end[reach_road]),
        road_edge_index=np.zeros((2, 0), np.int64),
        intersection_attr=np.zeros((0, 2), np.float32),
    )
    counts = rng.integers(2, 16, 30)
    road = []
    for count in counts:
        road.append(rng.integers(NUM_ROADS))
        for _ in range(count - 1):
            road.append(rng.choice(reach_road[reach_ptr[road[-1]] : reach_ptr[road[-1] + 1]]))
    road = np.array(road)
    offset = np.concatenate([[0], np.cumsum(counts)])
    rank = np.zeros(len(road), np.int32)
    step = np.delete(np.arange(len(road)), offset[1:] - 1)
    rank[step] = candidate_index(network, road[step], road[step + 1])
    time_s = 1_446_700_000 + np.cumsum(rng.integers(1, 400, len(road)))
    return network, Trips(offset, road.astype(np.int32), time_s, rank)


def random_loader(batch_size: int = 30) -> tuple[RoadNetwork, Trips, BatchLoader]:
    network, trips = random_city()
    return (
        network,
        trips,
        BatchLoader(trips, RoadTables.from_network(network), TimeStatistics.from_trips(trips), batch_size),
    )


def test_the_navigator_equals_the_formula_with_concatenations() -> None:
    batch = random_loader()[2].batch(np.arange(30))
    navigator = Navigator(NavigatorConfig(WIDTH))
    trajectory = torch.randn(len(batch.road_id), 2 * WIDTH)
    destination, road = torch.randn(30, WIDTH), torch.randn(NUM_ROADS, WIDTH)
    ours = navigator(trajectory, destination, road, batch.candidate_road_id, batch)
    place = batch.step_of_candidate, batch.candidate_index
    padded = [
        torch.zeros(len(trajectory), batch.max_candidates, *values.shape[1:]).index_put(place, values)
        for values in (road[batch.candidate_road_id], batch.metric_distance, batch.metric_angle)
    ]
    logits, time_pred = plain_navigator(navigator, trajectory, destination[batch.trip_of_step], *padded)
    torch.testing.assert_close(ours.logits, logits[place], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.time_pred, time_pred[place], rtol=1e-5, atol=1e-6)
    assert_same_gradients(
        navigator, torch.cat([ours.logits, ours.time_pred]), torch.cat([logits[place], time_pred[place]])
    )


def test_a_batch_gives_the_same_loss_as_its_trips_one_by_one() -> None:
    loader = random_loader()[2]
    model = HOSER(CONFIG, random_features())
    together = HOSERLoss(loader.statistics)(model(loader.batch(np.arange(30))), loader.batch(np.arange(30)))
    sums, steps = torch.zeros(2), 0
    for trip in range(30):
        batch = loader.batch(np.array([trip]))
        terms = HOSERLoss(loader.statistics)(model(batch), batch)
        sums += len(batch.road_id) * torch.stack([terms["loss_next_step"], terms["loss_time_pred"]]).detach()
        steps += len(batch.road_id)
    torch.testing.assert_close(
        torch.stack([together["loss_next_step"], together["loss_time_pred"]]), sums / steps, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("pairs", "number"), [(20 * 14**2, 2), (2**23, 1)])
def test_trips_padded_together_as_on_a_gpu_give_the_same_loss(
    pairs: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a number of pairs of steps, however much shorter some of the trips are."""
    loader = random_loader()[2]
    model, loss = HOSER(CONFIG, random_features()), HOSERLoss(loader.statistics)
    plain = loader.batch(np.arange(30))
    monkeypatch.setitem(GROUP_PAIRS, "cpu", pairs)
    batch = loader.batch(np.arange(30))
    assert len(batch.groups) == number < len(plain.groups)
    assert sum(group.num_trips for group in batch.groups) == 30
    assert batch.groups[0].num_trips >= min(pairs // 14**2, 30)
    torch.testing.assert_close(loss(model(batch), batch)["loss"], loss(model(plain), plain)["loss"])


def test_embeddings_made_beforehand_give_the_same_prediction() -> None:
    batch = random_loader()[2].batch(np.arange(30))
    model = HOSER(CONFIG, random_features()).eval()
    with torch.no_grad():
        fresh, given = model(batch), model(batch, model.embed_network())
    torch.testing.assert_close(fresh.logits, given.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fresh.time_pred, given.time_pred, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_losses_and_finite_gradients(dtype: torch.dtype) -> None:
    loader = random_loader()[2]
    batch = loader.batch(np.arange(30))
    model = HOSER(CONFIG, random_features())
    exact = HOSERLoss(loader.statistics)(model(batch), batch)["loss"]
    with torch.autocast("cpu", dtype):
        rounded = HOSERLoss(loader.statistics)(model(batch), batch)["loss"]
    rounded.backward()
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_every_epoch_has_each_trip_once_in_an_order_of_seed_and_epoch() -> None:
    loader = random_loader(batch_size=7)[2]

    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        return [tuple(batch.trip_index.tolist()) for batch in loader.shuffled(seed, epoch)]

    assert order(1, 0) == order(1, 0)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert sorted(sum(order(1, 0), ())) == list(range(30))
    assert [len(batch) for batch in order(1, 0)] == [7, 7, 7, 7, 2]


def test_distinct_values_and_their_rows() -> None:
    values, row = distinct(torch.tensor([5, 2, 5, 9]), 10)
    assert values.tolist() == [2, 5, 9]
    assert row[torch.tensor([9, 5, 2, 5])].tolist() == [2, 1, 0, 1]
