"""HOSER (Cao et al., AAAI 2025): next road and travel time, given the trip so far and its destination."""

import re
from dataclasses import fields

import torch
from torch import Tensor, nn

from models.batch import Batch, NetworkFeatures, Prediction
from models.config import ModelConfig
from models.navigator import Navigator
from models.ragged import distinct
from models.road_network_encoder import RoadNetworkEncoder
from models.thread_count import threads_for
from models.trajectory_encoder import TrajectoryEncoder

# Dead weight of checkpoints made by the published code: an unused head, and the causal masks.
DEAD_KEYS = re.compile(r"navigator\.time_estimator\.\d+\.\w+|trajectory_encoder\.transformer\.h\.\d+\.attn\.bias")

# On a GPU, embedding a network of up to this size whole is cheaper than waiting for the GPU to say
# which part of it the batch needs.
WHOLE_NETWORK_ROADS = 200_000


class HOSER(nn.Module):
    """Road Network Encoder, Trajectory Encoder and Navigator.

    Names of parameters and buffers are those of the published code, so that its state dicts load. Of these the
    parameters are taken; the features of the road network stay those that the model was built from.
    """

    def __init__(self, config: ModelConfig, features: NetworkFeatures):
        """Build the model for one road network.

        Args:
            config: sizes; a whole `utils.config.Config` is one.
            features: the static part of the network, `City.features`.
        """
        super().__init__()
        self.road_network_encoder = RoadNetworkEncoder(config.road_network_encoder_config, features)
        self.trajectory_encoder = TrajectoryEncoder(config.trajectory_encoder_config)
        self.navigator = Navigator(config.navigator_config)
        self.register_buffer("road2zone", features.road2zone.clone())
        self.register_load_state_dict_pre_hook(_drop_dead_keys)
        self.register_load_state_dict_pre_hook(_keep_features)

    def feature_buffers(self) -> dict[str, tuple[str, Tensor]]:
        """The features of the road network: name in a state dict -> what people call it, and its values."""
        names = {name.rpartition(".")[2]: name for name, _ in self.named_buffers()}
        return {
            names[item.name]: (item.metadata["kind"], self.get_buffer(names[item.name]))
            for item in fields(NetworkFeatures)
        }

    def embed_network(self) -> tuple[Tensor, Tensor]:
        """Embeddings of all roads [N, h] and all zones [Z, h].

        Made once before an evaluation, and in each training step that `embeds_whole_network`.
        """
        with threads_for(len(self.road2zone)):
            return self.road_network_encoder()

    @property
    def embeds_whole_network(self) -> bool:
        """Whether each training step embeds the whole network: on a GPU, up to WHOLE_NETWORK_ROADS roads."""
        return self.road2zone.is_cuda and len(self.road2zone) <= WHOLE_NETWORK_ROADS

    def forward(self, batch: Batch, network: tuple[Tensor, Tensor] | None = None) -> Prediction:
        """Scores and standardised log times of all candidates of all steps, [K] each.

        On a GPU, training steps replay the operations of one call (`training.cuda_graph`): what varies from step to
        step must come from the tensors of the batch, or from a buffer. Steps and candidates that pad a batch have no
        part in the loss, and must have none in what is computed for others.

        Args:
            batch: trips, packed.
            network: what `embed_network` returned; by default the embeddings are computed here, with gradients, as
                training needs them (of the roads that the batch touches, or of all: `embeds_whole_network`).
        """
        if network is None and self.embeds_whole_network:
            network = self.embed_network()
        with threads_for(self.fewest_rows(batch)):
            road, road_row, candidate_row = self._roads_of(batch, None if network is None else network[0])
            zone = self.road_network_encoder.embed_zones() if network is None else network[1]
            of_steps = road.index_select(0, road_row), zone.index_select(0, self.road2zone[batch.road_id])
            destination = zone.index_select(0, self.road2zone[batch.destination_road_id])
            trajectory = self.trajectory_encoder(*of_steps, batch)
            return self.navigator(trajectory, destination, road, candidate_row, batch)

    def fewest_rows(self, batch: Batch) -> int:
        """About how many rows the smallest of a batch's products has: the roads that the steps are on.

        Trips overlap, so these are fewer than the steps, but hardly less than a quarter.
        """
        return min(len(batch.road_id) // 4, len(self.road2zone))

    def _roads_of(self, batch: Batch, network: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Road embeddings [n, h], and the rows in it of the steps' roads [S] and of the candidates [K].

        Where the network is large, of the roads that the batch touches only: what follows works road by road, on all
        that it is given.
        """
        if network is not None and self.embeds_whole_network:
            return network, batch.road_id, batch.candidate_road_id
        touched = torch.cat([batch.road_id, batch.candidate_road_id])
        touched, row = distinct(touched, len(self.road2zone))
        road = self.road_network_encoder.embed_roads(touched) if network is None else network.index_select(0, touched)
        return road, row[batch.road_id], row[batch.candidate_road_id]


def _keep_features(module: HOSER, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Loading weights leaves the features as they are: those of the data, from which batches are made, too."""
    for name, (_, value) in module.feature_buffers().items():
        state_dict[prefix + name] = value


def _drop_dead_keys(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    for key in [key for key in state_dict if DEAD_KEYS.fullmatch(key.removeprefix(prefix))]:
        del state_dict[key]
