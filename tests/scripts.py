"""Running the project's command lines as real processes, on a small city, in a folder of the test's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
MINI_CITY = PROJECT / "tests" / "golden" / "mini_city"

MINI_CONFIG = """\
road_network_encoder_config:
  road_id_emb_dim: 16
  len_emb_dim: 4
  type_emb_dim: 4
  lon_emb_dim: 4
  lat_emb_dim: 4
  intersection_emb_dim: 32
  zone_id_emb_dim: 32
  zone_id_num_embeddings: 8
trajectory_encoder_config:
  hidden_dim: 32
navigator_config:
  hidden_dim: 32
optimizer_config:
  max_epoch: 3
  batch_size: 25
  learning_rate: 0.005
"""


def make_mini_project(folder: Path) -> Path:
    """`data/Mini` (121 roads, 120 training trips) and `Mini.yaml` in `folder`; returns `folder`."""
    shutil.copytree(MINI_CITY, folder / "data" / "Mini")
    (folder / "Mini.yaml").write_text(MINI_CONFIG)
    return folder


def script_environment() -> dict[str, str]:
    """One thread: tests run side by side, and threads of several processes on few cores wait for each other."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(PROJECT / script), *arguments]


def mini_command(script: str, *arguments: str) -> list[str]:
    """A command line on the city of `make_mini_project`."""
    return command(script, "--dataset", "Mini", "--config", "Mini.yaml", *arguments)


def run(arguments: list[str], cwd: Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without a terminal, and give back what it printed."""
    return subprocess.run(
        arguments, cwd=cwd, env=script_environment(), capture_output=True, text=True, timeout=timeout_s
    )
