"""The README's recipes, followed in a copy of the project: a new loss term, a new feature of roads."""

from pathlib import Path

import pytest
import torch
from scripts import copy_of_the_project, mini, run, scalars


def edit(path: Path, *replacements: tuple[str, str]) -> None:
    """Replace texts that stand in the file exactly once."""
    text = path.read_text()
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


def train(code: Path, project: Path) -> Path:
    """Train a copy of the project for an epoch; returns the name of the run's folders."""
    done = run([str(code / "train.py"), *mini("train.py", "--set", "optimizer_config.max_epoch=1")[1:]], project)
    assert done.returncode == 0, done.stderr
    return Path("Mini") / "seed0"


def test_a_loss_term_is_one_edit_and_has_a_curve_of_its_name(project: Path) -> None:
    code = copy_of_the_project(project / "code")
    edit(
        code / "utils" / "training" / "losses.py",
        (
            "        weights = dict.fromkeys(losses, 1.0)\n",
            '        losses["loss_logit_size"] = prediction.logits.square().mean() * batch.share\n'
            '        weights = dict.fromkeys(losses, 1.0) | {"loss_logit_size": 0.01}\n',
        ),
    )
    curves = scalars(project / "tensorboard_log" / train(code, project))
    terms = ("loss_next_step", "loss_time_pred", "loss_logit_size")
    for (_, loss), *values in zip(curves["loss"], *(curves[name] for name in terms), strict=True):
        next_step, time_pred, logit_size = (value for _, value in values)
        assert logit_size > 0
        assert loss == pytest.approx(next_step + time_pred + 0.01 * logit_size, rel=1e-5)


def test_a_feature_of_roads_is_computed_declared_and_embedded(project: Path) -> None:
    code = copy_of_the_project(project / "code")
    edit(
        code / "utils" / "data" / "road_network.py",
        (
            "    road_attr_type: Ints  # [N], highway class id\n",
            "    road_attr_type: Ints  # [N], highway class id\n"
            "    road_attr_degree: NDArray[np.float32]  # [N], standardised number of candidates\n",
        ),
        (
            "        road_attr_type=type_id,\n",
            "        road_attr_type=type_id,\n"
            "        road_attr_degree=_standardise(np.diff(reach_ptr).astype(np.float32)),\n",
        ),
    )
    edit(
        code / "models" / "batch.py",
        (
            "    road_attr_lon: Tensor",
            '    road_attr_degree: Tensor = field(metadata={"kind": "degrees"})  # [N] float32, standardised\n'
            "    road_attr_lon: Tensor",
        ),
    )
    edit(
        code / "models" / "road_network_encoder.py",
        (
            "        self.lon_emb = nn.Linear(1, config.lon_emb_dim)\n",
            "        self.lon_emb = nn.Linear(1, config.lon_emb_dim)\n"
            "        self.degree_emb = nn.Linear(1, config.lon_emb_dim)\n",
        ),
        (
            "                self.lon_emb(of(self.road_attr_lon).unsqueeze(-1)),\n",
            "                self.lon_emb(of(self.road_attr_lon).unsqueeze(-1))\n"
            "                + self.degree_emb(of(self.road_attr_degree).unsqueeze(-1)),\n",
        ),
    )
    state = torch.load(project / "save" / train(code, project) / "best.pth")
    degree = state["road_network_encoder.road_attr_degree"]
    assert degree.shape == state["road_network_encoder.road_attr_len"].shape
    assert degree.mean().item() == pytest.approx(0, abs=1e-5)
    assert state["road_network_encoder.degree_emb.weight"].abs().sum() > 0
