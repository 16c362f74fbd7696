"""All paths are relative to the working folder; configurations that come with the project are found from everywhere."""

from pathlib import Path

import pytest
from helpers import error_of
from scripts import MINI_CONFIG, PROJECT, make_mini_project, run

from utils.config import config_path, load_config
from utils.data.dataset import find_folder


def test_the_configuration_of_the_working_folder_comes_first(workplace: Path) -> None:
    assert config_path("Demo") == PROJECT / "config" / "Demo.yaml"
    assert config_path("Elsewhere") is None
    (workplace / "config").mkdir()
    for name in ("Demo", "Elsewhere"):
        (workplace / "config" / f"{name}.yaml").write_text("optimizer_config:\n  max_epoch: 3\n")
        assert config_path(name) == Path("config") / f"{name}.yaml"
        assert load_config(name).optimizer_config.max_epoch == 3


def test_a_run_in_any_folder_reads_and_writes_there_and_says_which_configuration_holds(tmp_path: Path) -> None:
    make_mini_project(tmp_path)
    command = ["train.py", "--dataset", "Mini", "--set", "optimizer_config.max_epoch=1"]
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "Mini.yaml").write_text(MINI_CONFIG)
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "configuration: config/Mini.yaml" in done.stderr
    assert (tmp_path / "save" / "Mini" / "seed0" / "best.pth").exists()
    (tmp_path / "config" / "Mini.yaml").unlink()
    small = ["--set", "road_network_encoder_config.zone_id_num_embeddings=8"]
    assert "configuration: published values" in run([*command, *small], tmp_path).stderr


@pytest.mark.parametrize(
    ("asked", "meant"), [("demo", "Demo"), ("DEMO", "Demo"), ("mini", "Mini"), ("Minni", "Mini"), ("Atlantis", "")]
)
def test_a_data_set_of_a_similar_name_is_proposed(asked: str, meant: str, mini_city: Path) -> None:
    message = error_of(find_folder, asked)
    assert ("Did you mean" in message) is bool(meant)
    assert message.endswith(f". Did you mean --dataset {meant}?" if meant else "runs without a download")


def test_data_that_lie_in_the_projects_folder_are_pointed_at(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = workplace / "project"
    (project / "data" / "Town").mkdir(parents=True)
    monkeypatch.setattr("utils.data.dataset.PROJECT", project)
    assert error_of(find_folder, "Town").endswith(
        ". Paths are relative to the working folder; project/data/Town is there"
    )
