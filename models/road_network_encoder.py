"""Road Network Encoder (HOSER, section 4.1): embeddings of roads and of zones."""

from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import MessageGraph, NetworkFeatures
from models.config import RoadNetworkEncoderConfig
from models.graph_layers import GATv2Conv, GCNConv, gcn_adjacency, with_self_loops
from models.ragged import distinct, ragged_arange
from models.thread_count import enough_rows

# Targets embedded at a time when no gradients are kept: bounds memory on networks of a million roads.
CHUNK = 65_536


class GraphStack(nn.Module):
    """Two graph layers; holds them under the name that PyTorch Geometric's models give them."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.convs = nn.ModuleList([first, second])


class RoadNetworkEncoder(nn.Module):
    """Two GATv2 layers over adjacent roads, two GCN layers over zone transitions."""

    def __init__(self, config: RoadNetworkEncoderConfig, features: NetworkFeatures):
        super().__init__()
        width = config.road_width
        num_roads = len(features.road_attr_len)
        num_types = config.type_num_embeddings or int(features.road_attr_type.max()) + 1
        self.road_id_emb = nn.Embedding(num_roads, config.road_id_emb_dim)
        self.len_emb = nn.Linear(1, config.len_emb_dim)
        self.type_emb = nn.Embedding(num_types, config.type_emb_dim)
        self.lon_emb = nn.Linear(1, config.lon_emb_dim)
        self.lat_emb = nn.Linear(1, config.lat_emb_dim)
        self.zone_id_emb = nn.Embedding(config.zone_id_num_embeddings, config.zone_id_emb_dim)
        self.road_gat = GraphStack(GATv2Conv(width, width, edge_dim=2), GATv2Conv(width, width, edge_dim=2))
        self.zone_gcn = GraphStack(GCNConv(width, width), GCNConv(width, width))
        for item in fields(features):
            if item.name != "road2zone":  # which the whole model reads
                # A copy: what changes a model's buffers must not change the data.
                self.register_buffer(item.name, getattr(features, item.name).clone())
        for name in ("_source", "_target", "_edge_attr", "_in_ptr", "_zone_adjacency"):
            self.register_buffer(name, None, persistent=False)
        self.derive_graphs()

    def derive_graphs(self) -> None:
        """Compute from the saved buffers what the layers read: edges by target with loops, zone matrix."""
        num_roads = self.road_id_emb.num_embeddings
        edges, self._edge_attr = with_self_loops(self.road_edge_index, self.intersection_attr, num_roads)
        self._source, self._target = edges
        degree = torch.bincount(self._target, minlength=num_roads)
        self._in_ptr = F.pad(degree.cumsum(0), (1, 0))
        num_zones = self.zone_id_emb.num_embeddings
        adjacency = gcn_adjacency(self.zone_edge_index, self.zone_edge_weight, num_zones)
        self._zone_adjacency = enough_rows(enough_rows(adjacency).T).T.contiguous()

    def road_input(self, road: Tensor | None = None) -> Tensor:
        """Attributes of roads [n], by default of all -> what the first layer reads, [n, width]."""

        def of(values: Tensor) -> Tensor:
            return values if road is None else values.index_select(0, road)

        return torch.cat(
            [
                of(self.road_id_emb.weight),
                self.len_emb(of(self.road_attr_len).unsqueeze(-1)),
                self.type_emb(of(self.road_attr_type)),
                self.lon_emb(of(self.road_attr_lon).unsqueeze(-1)),
                self.lat_emb(of(self.road_attr_lat).unsqueeze(-1)),
            ],
            dim=1,
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        """Embeddings of all roads [N, width] and of all zones [Z, width]."""
        return self.embed_all_roads(), self.embed_zones()

    def embed_zones(self) -> Tensor:
        """Embeddings of all zones, [Z, width]."""
        first, second = self.zone_gcn.convs
        num_zones = self.zone_id_emb.num_embeddings
        x = F.relu(first(enough_rows(self.zone_id_emb.weight), self._zone_adjacency))
        return second(x, self._zone_adjacency)[:num_zones]

    def embed_all_roads(self) -> Tensor:
        """Embeddings of all roads, [N, width]; in chunks of targets where no gradients are kept."""
        num_roads, (first, second) = len(self.road_attr_len), self.road_gat.convs
        x = self.road_input()
        step = num_roads if torch.is_grad_enabled() else CHUNK
        starts = range(0, num_roads, step)
        graphs = [self._incoming(start, min(start + step, num_roads)) for start in starts]
        return second(F.relu(first(x, *graphs)), *graphs)

    def embed_roads(self, road: Tensor) -> Tensor:
        """Embeddings of `road` [n] (unique ids), [n, width].

        Only what they depend on is computed: their incoming neighbours, and those of these. That is
        exact, since a layer reads nothing else, and a batch touches a small part of a large city.
        """
        second_graph, middle_road = self.incoming_graph(road)
        first_graph, input_road = self.incoming_graph(middle_road)
        first, second = self.road_gat.convs
        x = F.relu(first(self.road_input(input_road), first_graph))
        return second(x, second_graph)

    def _incoming(self, start: int, stop: int) -> MessageGraph:
        """The edges into roads [start, stop), from all roads."""
        edges = slice(None)
        if (start, stop) != (0, len(self.road_attr_len)):
            edges = slice(int(self._in_ptr[start]), int(self._in_ptr[stop]))
        return MessageGraph(
            source=self._source[edges],
            target=self._target[edges] - start,
            ptr=self._in_ptr[start : stop + 1] - self._in_ptr[start],
            edge_attr=self._edge_attr[edges],
            self_row=torch.arange(start, stop, device=self._source.device),
        )

    def incoming_graph(self, target_road: Tensor) -> tuple[MessageGraph, Tensor]:
        """The edges into `target_road` [n_out], and the roads that they come from [n_in]."""
        first_edge = self._in_ptr[target_road]
        degree = self._in_ptr[target_road + 1] - first_edge
        target, place = ragged_arange(degree)
        edge = first_edge[target] + place
        source_road = self._source[edge]
        # Loops are among the edges, so the targets are among the sources.
        input_road, row = distinct(source_road, len(self.road_attr_len))
        graph = MessageGraph(
            source=row[source_road],
            target=target,
            ptr=F.pad(degree.cumsum(0), (1, 0)),
            edge_attr=self._edge_attr[edge],
            self_row=row[target_road],
        )
        return graph, input_road
