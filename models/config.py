"""Sizes of the HOSER model: the first three sections of a configuration file, with the published values.

Each field carries its meaning and its limits as metadata, so that the reader of configuration files
(`utils/config.py`) can check values and explain them without knowing the fields.
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
    """Widths of the Road Network Encoder (paper section 4.1)."""

    road_id_emb_dim: int = setting(64, "width of the road id embedding", min=1, max=MAX_WIDTH)
    len_emb_dim: int = setting(16, "width of the road length embedding", min=1, max=MAX_WIDTH)
    type_emb_dim: int = setting(16, "width of the highway class embedding", min=1, max=MAX_WIDTH)
    lon_emb_dim: int = setting(16, "width of the longitude embedding", min=1, max=MAX_WIDTH)
    lat_emb_dim: int = setting(16, "width of the latitude embedding", min=1, max=MAX_WIDTH)
    intersection_emb_dim: int = setting(128, "must equal the sum of the five widths above", min=1, max=MAX_WIDTH)
    zone_id_emb_dim: int = setting(128, "must equal the sum of the five widths above", min=1, max=MAX_WIDTH)
    road_id_num_embeddings: int | None = setting(None, "number of roads; empty: taken from the data", min=1)
    type_num_embeddings: int | None = setting(None, "number of highway classes; empty: taken from the data", min=1)
    zone_id_num_embeddings: int = setting(300, "number of zones", min=2, max=MAX_WIDTH)

    @property
    def road_width(self) -> int:
        """Width of a road's embedding: the five parts side by side."""
        return self.road_id_emb_dim + self.len_emb_dim + self.type_emb_dim + self.lon_emb_dim + self.lat_emb_dim


@dataclass(frozen=True)
class TrajectoryEncoderConfig:
    """Sizes of the Trajectory Encoder (paper section 4.2)."""

    hidden_dim: int = setting(128, "width of the spatial and of the temporal half of a step", min=2, max=MAX_WIDTH)
    num_heads: int = setting(2, "attention heads; must divide 2 * hidden_dim", min=1, max=MAX_WIDTH)
    num_layers: int = setting(2, "transformer blocks", min=1, max=MAX_LAYERS)
    dropout: float = setting(0.0, "dropout after the embedding, attention and MLP", min=0.0, below=1.0)
    max_len: int = setting(2000, "longest trip, in roads before the destination", min=1)


@dataclass(frozen=True)
class NavigatorConfig:
    """Size of the Destination-Oriented Navigator (paper section 4.3)."""

    hidden_dim: int = setting(128, "width of the additive attention over candidates", min=1, max=MAX_WIDTH)


@dataclass(frozen=True)
class ModelConfig:
    """All that `HOSER` needs to know of a configuration file."""

    road_network_encoder_config: RoadNetworkEncoderConfig = field(default_factory=RoadNetworkEncoderConfig)
    trajectory_encoder_config: TrajectoryEncoderConfig = field(default_factory=TrajectoryEncoderConfig)
    navigator_config: NavigatorConfig = field(default_factory=NavigatorConfig)
