"""Sizes of the HOSER model: the first three sections of a configuration file, with the published values.

Each field carries its meaning and its limits as metadata: the reader of configuration files (`utils/config.py`) checks
values without knowing the fields, and `utils/config_reference.py` makes config/README.md of them.
"""

from dataclasses import dataclass, field
from typing import Any

# Far beyond any sensible model: a slip of the keyboard is an error, and not a machine without memory.
MAX_WIDTH = 65_536
MAX_LAYERS = 1_000


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with a default, its meaning, and limits: `min`, `max`, `above`, `below`, `choices`."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class RoadNetworkEncoderConfig:
    """Widths of the Road Network Encoder (section 4.1 of the HOSER paper).

    Read by every program that builds the model. `zone_id_num_embeddings` is also read by those that only prepare the
    data (`tools/prepare_dataset.py`, `tools/train_teacher.py`).
    """

    road_id_emb_dim: int = setting(64, "Width of the road id embedding.", min=1, max=MAX_WIDTH)
    len_emb_dim: int = setting(16, "Width of the road length embedding.", min=1, max=MAX_WIDTH)
    type_emb_dim: int = setting(16, "Width of the highway class embedding.", min=1, max=MAX_WIDTH)
    lon_emb_dim: int = setting(16, "Width of the longitude embedding.", min=1, max=MAX_WIDTH)
    lat_emb_dim: int = setting(16, "Width of the latitude embedding.", min=1, max=MAX_WIDTH)
    intersection_emb_dim: int = setting(
        128, "Width of the intersection embedding. Must equal the sum of the five widths above.", min=1, max=MAX_WIDTH
    )
    zone_id_emb_dim: int = setting(128, "Width of the zone embedding. Must equal the same sum.", min=1, max=MAX_WIDTH)
    road_id_num_embeddings: int | None = setting(
        None, "Number of roads. Empty: taken from the data, which a given number must match.", min=1
    )
    type_num_embeddings: int | None = setting(
        None, "Number of highway classes. Empty: taken from the data, which a given number must match.", min=1
    )
    zone_id_num_embeddings: int = setting(
        300,
        "Number of zones that the road network is divided into, at most the number of roads. To change it, delete "
        "`road_network_partition` and `zone_trans_mat.npy` of the data set, so that they are computed again.",
        min=2,
        max=MAX_WIDTH,
    )

    @property
    def road_width(self) -> int:
        """Width of a road's embedding: the five parts side by side."""
        return self.road_id_emb_dim + self.len_emb_dim + self.type_emb_dim + self.lon_emb_dim + self.lat_emb_dim


@dataclass(frozen=True)
class TrajectoryEncoderConfig:
    """Sizes of the Trajectory Encoder (section 4.2 of the HOSER paper).

    Read by every program that builds the model; `max_len` by every program that reads trips.
    """

    hidden_dim: int = setting(
        128,
        "Width of the spatial half and of the temporal half of a step. Must be even and equal the sum of the five road "
        "embedding widths.",
        min=2,
        max=MAX_WIDTH,
    )
    num_heads: int = setting(2, "Number of attention heads. Must divide 2 * `hidden_dim`.", min=1, max=MAX_WIDTH)
    num_layers: int = setting(2, "Number of transformer blocks.", min=1, max=MAX_LAYERS)
    dropout: float = setting(
        0.0, "Dropout probability after the embedding, the attention and the MLP.", min=0.0, below=1.0
    )
    max_len: int = setting(
        2000, "Longest trip, in roads before the destination. Longer trips are handled by `data.on_bad_trip`.", min=1
    )


@dataclass(frozen=True)
class NavigatorConfig:
    """Size of the Destination-Oriented Navigator (section 4.3 of the HOSER paper).

    Read by every program that builds the model.
    """

    hidden_dim: int = setting(
        128,
        "Width of the additive attention over candidate roads. Must equal the sum of the five road embedding widths.",
        min=1,
        max=MAX_WIDTH,
    )


@dataclass(frozen=True)
class ModelConfig:
    """All that `HOSER` needs to know of a configuration file."""

    road_network_encoder_config: RoadNetworkEncoderConfig = field(default_factory=RoadNetworkEncoderConfig)
    trajectory_encoder_config: TrajectoryEncoderConfig = field(default_factory=TrajectoryEncoderConfig)
    navigator_config: NavigatorConfig = field(default_factory=NavigatorConfig)
