"""A configuration for cities that the published sizes are too large for."""

from pathlib import Path

from utils.config import PROJECT, config_path, load_config
from utils.data.zones import ZONE_KEY
from utils.files.atomic import atomic_write_text

MANY_ROADS = 5_000  # from here on, the published sizes fit
ROADS_PER_ZONE = 33


def write_small_config(name: str, roads: int) -> Path | None:
    """Write `config/{name}.yaml` with the sizes of the Demo city, and zones by the number of roads.

    Returns:
        The file; None if the city is large, or has a configuration.
    """
    if roads >= MANY_ROADS or config_path(name) is not None:
        return None
    text = (PROJECT / "config" / "Demo.yaml").read_text(encoding="utf-8")
    zones = _zones(roads)
    rest = text.split("\n", 1)[1]
    rest = rest.replace("zone_id_num_embeddings: 30\n", f"zone_id_num_embeddings: {zones}\n")
    path = Path("config") / f"{name}.yaml"
    content = f"# HOSER on {name} ({roads:,} roads), with the sizes of the Demo city.\n{rest}"
    atomic_write_text(path, lambda file: file.write(content))
    return path


def zone_advice(name: str, roads: int) -> str:
    """What to add to commands where the configuration has more zones than the city has roads; empty where it fits."""
    zones = load_config(name).road_network_encoder_config.zone_id_num_embeddings
    if zones <= roads:
        return ""
    return (
        f"{config_path(name) or 'the default'} is a configuration for a larger city ({zones} zones, {roads:,} roads): "
        f"train with --set {ZONE_KEY}={_zones(roads)}, or import under another name"
    )


def _zones(roads: int) -> int:
    return max(2, min(300, roads // ROADS_PER_ZONE))
